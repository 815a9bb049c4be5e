"""What `raymtl doctor` looks at: this machine, and the Ray cluster where there is one. Neither is
changed.
"""

from pathlib import Path

from raymtl.cluster import capacity
from raymtl.cluster.address import resolve
from raymtl.cluster.capacity import Capacity
from raymtl.cluster.doctor import local_checks, node_probe
from raymtl.cluster.doctor.check import Check
from raymtl.config import Experiment


def doctor(output: Path, address: str | None, experiment: Experiment | None = None) -> list[Check]:
    """Looks at this machine without starting Ray and, where `address` or RAY_ADDRESS names one, at
    the cluster.

    With an `experiment` it also checks whether there is room for its search and its training.
    `output` is where runs would be written; it is not made. What cannot be looked at is a check
    that failed: nothing is raised, and a cluster that does not answer costs at most
    `node_probe.ANSWER_S` seconds.
    """
    folder = output.absolute()
    address = resolve(address)
    checks = local_checks.look(folder, address)
    if address:
        checks += node_probe.look(folder, address, experiment)
    elif experiment is not None:
        checks.append(capacity.check(experiment, Capacity([local_checks.resources()])))
    return checks
