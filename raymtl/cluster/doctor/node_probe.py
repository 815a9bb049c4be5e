"""`raymtl doctor` asks every node of a cluster for a report. Nothing is changed."""

import contextlib
import logging
import multiprocessing
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from raymtl.cluster.address import TCP_S, refusal
from raymtl.cluster.capacity import Capacity, Machines, check
from raymtl.cluster.doctor import node_checks
from raymtl.cluster.doctor.check import Check, first_line
from raymtl.cluster.doctor.local_checks import existing
from raymtl.cluster.doctor.node_checks import NodeReport
from raymtl.config import Experiment
from raymtl.internals import ray as ray_internals

# ray.init alone tries a dead address for minutes; a live cluster answers within a few seconds.
ANSWER_S = 60.0
# A node that never ran a task of this kind starts a worker for it first.
NODE_S = 30.0


def look(folder: Path, address: str, experiment: Experiment | None = None) -> list[Check]:
    """Checks of the cluster at the address, and whether it has room for the experiment."""
    reason = refusal(address)
    if reason:
        return [_unreachable(address, reason)]
    return _ask_in_process(folder, address, experiment)


def _unreachable(address: str, reason: str) -> Check:
    advice = (
        "Start the cluster, correct --address and RAY_ADDRESS, or leave both away to start Ray on "
        "this machine. The token, and the versions of Python and Ray, must be the cluster's."
    )
    return Check("cluster", False, f"{address}: {reason}", advice)


def _ask_in_process(folder: Path, address: str, experiment: Experiment | None) -> list[Check]:
    """Asks the cluster in a separate process, because ray.init has no time limit and cannot be
    interrupted.
    """
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_ask, args=(sender, folder, address, experiment), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(ANSWER_S):
            return [_unreachable(address, f"no answer within {ANSWER_S:g} s")]
        checks: list[Check] = receiver.recv()
        child.join(TCP_S)
        return checks
    except EOFError:
        return [_unreachable(address, "the connection broke while Ray answered")]
    finally:
        child.kill()
        child.join()
        receiver.close()


def _ask(sender: Connection, folder: Path, address: str, experiment: Experiment | None) -> None:
    """The process of `_ask_in_process`: sends its list of checks."""
    # Ray's own messages about a failed connection, from C++ as well, would stand between the
    # doctor's lines.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    import ray

    try:
        ray.init(address=address, logging_level=logging.CRITICAL, log_to_driver=False)
        checks = [
            Check("cluster", True, f"Ray {ray.__version__} answers at {address}", ""),
            *survey(folder),
        ]
        if experiment is not None:
            checks.append(check(experiment, Capacity(machines())))
    # Ray raises ConnectionError, RuntimeError, ValueError and its own kinds.
    except Exception as error:
        checks = [_unreachable(address, first_line(error))]
    finally:
        ray.shutdown()
    sender.send(checks)


def machines() -> Machines:
    """What each machine of the cluster has; Ray is connected."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def survey(folder: Path, notice_s: float = 0.0) -> list[Check]:
    """Checks of every node that is alive; Ray is connected.

    A node that does not answer may have left already: Ray is given `notice_s` seconds to notice
    that, and then the node does not count.
    """
    import ray

    with _probe(folder) as probe:
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        reports = _reports(list(nodes), probe)
    until = time.monotonic() + notice_s
    while nodes.keys() - reports.keys() and time.monotonic() < until:
        time.sleep(1)
        dead = {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
        nodes = {key: node for key, node in nodes.items() if key in reports or key not in dead}
    names = {
        key: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for key, node in nodes.items()
    }
    named = {names[key]: report for key, report in reports.items()}
    silent = [names[key] for key in nodes if key not in reports]
    checks = [
        node_checks.alive(list(names.values()), silent, NODE_S),
        node_checks.resources(ray.cluster_resources()),
        node_checks.same_versions(named),
        node_checks.floors(named),
        node_checks.authentication(named),
        node_checks.clocks(named),
        node_checks.interfaces(named),
        node_checks.disks(named),
    ]
    if probe:
        checks.append(node_checks.shared(probe.parent, named))
    return checks


@contextlib.contextmanager
def _probe(folder: Path) -> Iterator[Path | None]:
    """A new folder under the output, as near to it as there are folders; None where none can be
    made.
    """
    path = existing(folder) / f".raymtl-doctor-{uuid.uuid4().hex}"
    try:
        path.mkdir()
        path.chmod(0o777)  # nodes may run as another user
    except OSError:
        yield None
        return
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _reports(node_ids: list[str], probe: Path | None) -> dict[str, NodeReport]:
    """The report of each node; a node that does not answer in time has none.

    Every node writes a file named after it into `probe`; once all have, each reads those of its
    neighbours in the list.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    describe = ray.remote(num_cpus=0, max_retries=0)(
        _describing(("raymtl", *node_checks.PACKAGES), probe)
    )
    read = ray.remote(num_cpus=0, max_retries=0)(_reading(probe))
    on = {key: NodeAffinitySchedulingStrategy(key, soft=False) for key in node_ids}
    pending = {describe.options(scheduling_strategy=on[key]).remote(key): key for key in node_ids}
    done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=NODE_S)
    facts_of: dict[str, dict[str, Any]] = {}
    for ref in done:
        # A node that went away has no report, and is named as silent.
        with contextlib.suppress(ray.exceptions.RayError):
            facts_of[pending[ref]] = ray.get(ref)
    writers = [key for key, facts in facts_of.items() if facts["writes"]]
    reports = {}
    # One after the other: the time that each takes is what the clocks are compared by.
    for key, facts in facts_of.items():
        neighbours = _neighbours(key, writers)
        with contextlib.suppress(ray.exceptions.RayError):
            asked_at = time.time()
            task = read.options(scheduling_strategy=on[key]).remote(neighbours)
            node_time, files = ray.get(task, timeout=NODE_S)
            unread = [other for other in neighbours if other not in files]
            reports[key] = NodeReport(facts, asked_at, node_time, time.time(), unread)
    return reports


# What a node runs is made inside of a function: it travels whole, and a node without raymtl can run
# it too.


def _describing(packages: tuple[str, ...], probe: Path | None) -> Callable[[str], dict[str, Any]]:
    """A function that a node runs: the facts of it, and whether it could write its file."""
    asks_for_token = ray_internals.token_probe()

    def describe(node: str) -> dict[str, Any]:
        import contextlib
        import os
        import pathlib
        import platform
        import shutil
        import socket
        from importlib import metadata

        facts: dict[str, Any] = {"python": platform.python_version()}
        for package in packages:
            facts[package] = None
            with contextlib.suppress(metadata.PackageNotFoundError):
                facts[package] = metadata.version(package)
        facts["token"] = asks_for_token()
        facts["resolves"] = None
        with contextlib.suppress(OSError):
            facts["resolves"] = socket.gethostbyname(socket.gethostname())
        facts["interfaces"] = [name for _, name in socket.if_nameindex()]
        facts["gloo"] = os.environ.get("GLOO_SOCKET_IFNAME", "")
        facts["nccl"] = os.environ.get("NCCL_SOCKET_IFNAME", "")
        usage = shutil.disk_usage(os.environ.get("RAY_TMPDIR") or "/tmp")
        facts["disk_free"], facts["disk_share"] = usage.free, 1 - usage.free / usage.total
        facts["sees"] = facts["writes"] = None
        if probe is not None:
            facts["sees"] = pathlib.Path(probe).is_dir()
            facts["writes"] = False
            with contextlib.suppress(OSError):
                (pathlib.Path(probe) / node).write_text(node)
                facts["writes"] = True
        return facts

    return describe


def _reading(probe: Path | None) -> Callable[[list[str]], tuple[float, list[str]]]:
    """A function that a node runs: its time, and which of the files it reads."""

    def read(written: list[str]) -> tuple[float, list[str]]:
        import pathlib
        import time

        now, found = time.time(), []
        for node in written:
            try:
                if probe is not None and (pathlib.Path(probe) / node).read_text() == node:
                    found.append(node)
            except OSError:
                continue  # it is missing from the answer, and named
        return now, found

    return read


def _neighbours(node: str, ring: list[str]) -> list[str]:
    """The nodes before and after it in the ring.

    Where the nodes see two storages instead of one, some node's neighbour writes to the other one.
    """
    if not ring:
        return []
    index = 0
    if node in ring:
        index = ring.index(node)
    return sorted({ring[index - 1], ring[(index + 1) % len(ring)]})
