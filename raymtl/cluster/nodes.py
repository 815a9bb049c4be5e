"""What `raymtl doctor` asks the nodes of a cluster. Nothing is changed."""

import contextlib
import logging
import multiprocessing
import os
import platform
import uuid
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from raymtl.cluster.address import TCP_S, refusal
from raymtl.cluster.checks import INSTALL, Check, first_line, version
from raymtl.cluster.machine import existing

# ray.init alone tries a dead address for minutes; a live cluster answers within a few seconds.
ANSWER_S = 60.0
# A node that never ran a task of this kind starts a worker for it first.
NODE_S = 30.0


def look(folder: Path, address: str) -> list[Check]:
    """Checks of the cluster at the address."""
    reason = refusal(address)
    return [_unreachable(address, reason)] if reason else _asked(folder, address)


def _unreachable(address: str, reason: str) -> Check:
    advice = (
        "Start the cluster, correct --address and RAY_ADDRESS, or leave both away to start Ray on this machine. "
        "The token, and the versions of Python and Ray, must be the cluster's."
    )
    return Check("cluster", False, f"{address}: {reason}", advice)


def _asked(folder: Path, address: str) -> list[Check]:
    """Has a process of its own ask the cluster, because ray.init can neither be given a time nor be interrupted."""
    spawn = multiprocessing.get_context("spawn")
    answer, ours = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_ask, args=(ours, folder, address), daemon=True)
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


def _ask(answer: Connection, folder: Path, address: str) -> None:
    """The process of `_asked`: sends its list of checks."""
    # Ray's own messages about a failed connection, from C++ as well, would stand between the doctor's lines.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    import ray

    try:
        ray.init(address=address, logging_level=logging.CRITICAL, log_to_driver=False)
        found = [Check("cluster", True, f"Ray {ray.__version__} answers at {address}", ""), *survey(folder)]
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError and its own kinds
        found = [_unreachable(address, first_line(error))]
    finally:
        ray.shutdown()
    answer.send(found)


def survey(folder: Path) -> list[Check]:
    """Asks every node that is alive; Ray is connected."""
    import ray

    with _probe(folder) as probe:
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        answers = _answers(list(nodes), probe)
    names = {key: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for key, node in nodes.items()}
    replies = {names[key]: reply for key, reply in answers.items()}
    silent = [names[key] for key in nodes if key not in answers]
    checks = [_alive(list(names.values()), silent), _resources(ray.cluster_resources()), _same(replies)]
    return checks + ([_shared(probe.parent, replies)] if probe else [])


@contextlib.contextmanager
def _probe(folder: Path) -> Iterator[Path | None]:
    """A new file under the output, as near to it as there are folders; None where none can be written."""
    path = existing(folder) / f".raymtl-doctor-{uuid.uuid4().hex}"
    try:
        path.touch()
    except OSError:
        yield None
        return
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _answers(node_ids: list[str], probe: Path | None) -> dict[str, dict[str, Any]]:
    """What each node says of itself; a node is missing that does not answer within `NODE_S` seconds."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    packages = ("raymtl", "ray", "torch")

    # Not at the top of the module: there it would go by its name, which a node without raymtl could not look up.
    @ray.remote(num_cpus=0, max_retries=0)
    def describe() -> dict[str, Any]:
        import pathlib
        import platform
        import tempfile
        from importlib import metadata

        about: dict[str, Any] = {"python": platform.python_version(), "sees": None}
        for package in packages:
            try:
                about[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                about[package] = None
        if probe is not None:
            about["sees"] = pathlib.Path(probe).exists()
            try:
                with tempfile.TemporaryFile(dir=pathlib.Path(probe).parent):
                    about["writes"] = True
            except OSError:
                about["writes"] = False
        return about

    pending = {
        describe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False)).remote(): key
        for key in node_ids
    }
    done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=NODE_S)
    answers = {}
    for ref in done:
        with contextlib.suppress(ray.exceptions.RayError):  # the node went away: it is missing, and named as silent
            answers[pending[ref]] = ray.get(ref)
    return answers


def _alive(names: list[str], silent: list[str]) -> Check:
    found = f"{len(names)} alive: {', '.join(names)}"
    if silent:
        found += f"; no answer within {NODE_S:g} s from {', '.join(silent)}"
    advice = "Look at the logs under /tmp/ray/session_latest/logs there, and at the firewall between the nodes."
    return Check("nodes", not silent, found, advice)


def _resources(total: Mapping[str, float]) -> Check:
    cpus, gpus = total.get("CPU", 0), total.get("GPU", 0)
    advice = (
        "No node takes work. Wait until workers have joined; an autoscaled cluster starts them when asked "
        "(`request_resources`, see cluster.yaml)."
    )
    return Check("cluster's resources", True if cpus else None, f"{cpus:g} CPU, {gpus:g} GPU", advice)


def _same(replies: Mapping[str, Mapping[str, Any]]) -> Check:
    """Whether all nodes have this process's versions, whatever their builds (`+cpu`, `+cu128`)."""

    def comparable(versions: Mapping[str, Any]) -> dict[str, str]:
        return {key: (versions.get(key) or "no").partition("+")[0] for key in ("python", "raymtl", "ray", "torch")}

    here = comparable(
        {"python": platform.python_version(), **{name: version(name) for name in ("raymtl", "ray", "torch")}}
    )
    other = [
        f"{name}: {key} {found}, here {here[key]}"
        for name, versions in replies.items()
        for key, found in comparable(versions).items()
        if found != here[key]
    ]
    same = ", ".join(f"{key} {found}" for key, found in here.items())
    advice = f"Install the same everywhere: {INSTALL} . (`ray up` does so), with the same Python."
    return Check("versions on the nodes", not other, "; ".join(other) or f"all have {same}", advice)


def _shared(folder: Path, replies: Mapping[str, Mapping[str, Any]]) -> Check:
    blind = [name for name, reply in replies.items() if not reply["sees"]]
    barred = [name for name, reply in replies.items() if reply["sees"] and not reply["writes"]]
    advice = (
        "The run folder must be on storage that all nodes see under the same path and may write to: NFS, EFS, FSx. "
        "Mount it everywhere, and give a folder on it as output."
    )
    found = [f"a file in {folder} is not seen on {', '.join(blind)}"] if blind else []
    found += [f"{folder} is read-only on {', '.join(barred)}"] if barred else []
    return Check("shared output", not found, "; ".join(found) or f"{folder} is the same on all nodes", advice)
