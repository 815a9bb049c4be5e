"""What `raymtl doctor` looks at: this machine, and the Ray cluster where there is one. Neither is changed."""

from pathlib import Path

from raymtl.cluster import machine, nodes
from raymtl.cluster.address import resolve
from raymtl.cluster.checks import Check


def doctor(output: Path, address: str | None) -> list[Check]:
    """Looks at this machine without starting Ray and, where `address` or RAY_ADDRESS names one, at the cluster.

    `output` is where runs would be written; it is not made. What cannot be looked at is a check that failed: nothing
    is raised, and a cluster that does not answer costs at most `nodes.ANSWER_S` seconds.
    """
    folder = output.absolute()
    address = resolve(address)
    return machine.look(folder, address) + (nodes.look(folder, address) if address else [])
