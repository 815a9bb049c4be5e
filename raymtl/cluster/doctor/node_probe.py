"""What `raymtl doctor` asks the nodes of a cluster. Nothing is changed."""

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

from raymtl import ray_internals
from raymtl.cluster.address import TCP_S, refusal
from raymtl.cluster.capacity import Machines, check
from raymtl.cluster.doctor import node_checks
from raymtl.cluster.doctor.check import Check, first_line
from raymtl.cluster.doctor.local_checks import existing
from raymtl.cluster.doctor.node_checks import Answer
from raymtl.config import Experiment

# ray.init alone tries a dead address for minutes; a live cluster answers within a few seconds.
ANSWER_S = 60.0
# A node that never ran a task of this kind starts a worker for it first.
NODE_S = 30.0


def look(folder: Path, address: str, experiment: Experiment | None = None) -> list[Check]:
    """Checks of the cluster at the address, and whether it has room for the experiment."""
    reason = refusal(address)
    if reason:
        return [_unreachable(address, reason)]
    return _asked(folder, address, experiment)


def _unreachable(address: str, reason: str) -> Check:
    advice = (
        "Start the cluster, correct --address and RAY_ADDRESS, or leave both away to start Ray on "
        "this machine. The token, and the versions of Python and Ray, must be the cluster's."
    )
    return Check("cluster", False, f"{address}: {reason}", advice)


def _asked(folder: Path, address: str, experiment: Experiment | None) -> list[Check]:
    """Has a process of its own ask the cluster, because ray.init can neither be given a time nor be
    interrupted.
    """
    spawn = multiprocessing.get_context("spawn")
    answer, ours = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_ask, args=(ours, folder, address, experiment), daemon=True)
    child.start()
    ours.close()
    try:
        if not answer.poll(ANSWER_S):
            return [_unreachable(address, f"no answer within {ANSWER_S:g} s")]
        checks: list[Check] = answer.recv()
        child.join(TCP_S)
        return checks
    except EOFError:
        return [_unreachable(address, "the connection broke while Ray answered")]
    finally:
        child.kill()
        child.join()
        answer.close()


def _ask(answer: Connection, folder: Path, address: str, experiment: Experiment | None) -> None:
    """The process of `_asked`: sends its list of checks."""
    # Ray's own messages about a failed connection, from C++ as well, would stand between the
    # doctor's lines.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    import ray

    try:
        ray.init(address=address, logging_level=logging.CRITICAL, log_to_driver=False)
        found = [
            Check("cluster", True, f"Ray {ray.__version__} answers at {address}", ""),
            *survey(folder),
        ]
        if experiment is not None:
            found.append(check(experiment, machines()))
    except (
        Exception
    ) as error:  # Ray raises ConnectionError, RuntimeError, ValueError and its own kinds
        found = [_unreachable(address, first_line(error))]
    finally:
        ray.shutdown()
    answer.send(found)


def machines() -> Machines:
    """What each machine of the cluster has; Ray is connected."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def survey(folder: Path, notice_s: float = 0.0) -> list[Check]:
    """Asks every node that is alive; Ray is connected.

    One that does not answer may be gone already: Ray is given `notice_s` to notice that, and then
    it is none of them.
    """
    import ray

    with _probe(folder) as probe:
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        answers = _answers(list(nodes), probe)
    until = time.monotonic() + notice_s
    while nodes.keys() - answers.keys() and time.monotonic() < until:
        time.sleep(1)
        gone = {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
        nodes = {key: node for key, node in nodes.items() if key in answers or key not in gone}
    names = {
        key: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for key, node in nodes.items()
    }
    named = {names[key]: answer for key, answer in answers.items()}
    silent = [names[key] for key in nodes if key not in answers]
    return [
        node_checks.alive(list(names.values()), silent, NODE_S),
        node_checks.resources(ray.cluster_resources()),
        node_checks.same_versions(named),
        node_checks.floors(named),
        node_checks.authentication(named),
        node_checks.clocks(named),
        node_checks.interfaces(named),
        node_checks.disks(named),
        *([node_checks.shared(probe.parent, named)] if probe else []),
    ]


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


def _answers(node_ids: list[str], probe: Path | None) -> dict[str, Answer]:
    """What each node says of itself, and which nodes' files it reads; one is missing that does not
    answer in time.

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
    told: dict[str, dict[str, Any]] = {}
    for ref in done:
        with contextlib.suppress(
            ray.exceptions.RayError
        ):  # the node went away: it is missing, and named as silent
            told[pending[ref]] = ray.get(ref)
    written = [key for key, about in told.items() if about["writes"]]
    answers = {}
    for (
        key,
        about,
    ) in told.items():  # one after the other: by how long it took, the clocks are compared
        with contextlib.suppress(ray.exceptions.RayError):
            asked = time.time()
            now, found = ray.get(
                read.options(scheduling_strategy=on[key]).remote(_beside(key, written)),
                timeout=NODE_S,
            )
            unread = [other for other in _beside(key, written) if other not in found]
            answers[key] = Answer(about, asked, now, time.time(), unread)
    return answers


# What a node runs is made inside of a function: it travels whole, and a node without raymtl can run
# it too.


def _describing(packages: tuple[str, ...], probe: Path | None) -> Callable[[str], dict[str, Any]]:
    """A function that a node runs: what it is, and whether it could write its file."""
    asks_for_token = ray_internals.token_probe()

    def describe(node: str) -> dict[str, Any]:
        import os
        import pathlib
        import platform
        import shutil
        import socket
        from importlib import metadata

        about: dict[str, Any] = {"python": platform.python_version()}
        for package in packages:
            try:
                about[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                about[package] = None
        about["token"] = asks_for_token()
        try:
            about["resolves"] = socket.gethostbyname(socket.gethostname())
        except OSError:
            about["resolves"] = None
        about["interfaces"] = [name for _, name in socket.if_nameindex()]
        about["gloo"] = os.environ.get("GLOO_SOCKET_IFNAME", "")
        about["nccl"] = os.environ.get("NCCL_SOCKET_IFNAME", "")
        usage = shutil.disk_usage(os.environ.get("RAY_TMPDIR") or "/tmp")
        about["disk_free"], about["disk_share"] = usage.free, 1 - usage.free / usage.total
        about["sees"] = about["writes"] = None
        if probe is not None:
            about["sees"] = pathlib.Path(probe).is_dir()
            try:
                (pathlib.Path(probe) / node).write_text(node)
                about["writes"] = True
            except OSError:
                about["writes"] = False
        return about

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


def _beside(node: str, written: list[str]) -> list[str]:
    """The nodes before and after it in the ring; where two storages are, some node reads from the
    other.
    """
    if node in written:
        at = written.index(node)
    else:
        at = 0
    if written:
        return sorted({written[at - 1], written[(at + 1) % len(written)]})
    return []
