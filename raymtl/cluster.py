"""What `raymtl doctor` looks at: this machine, and the Ray cluster where there is one. Neither is changed."""

import contextlib
import logging
import multiprocessing
import os
import platform
import shutil
import socket
import tempfile
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

GIB = 2**30
INSTALL = "python3 -m pip install -c constraints.txt"
# A refused connection comes back at once, a dropped one never.
TCP_S = 3.0
# ray.init alone tries a dead address for minutes; a live cluster answers within a few seconds.
ANSWER_S = 60.0
# A node that never ran a task of this kind starts a worker for it first.
NODE_S = 30.0
# Ray's object store asks for this share of the free memory, at most this much, and for no more than /dev/shm has,
# unless that is less than the last figure: then it goes to the disk.
STORE_SHARE, STORE_MOST, STORE_LEAST_CAP = 0.3, 200 * 10**9, 10**10
# Above this share of a full disk Ray refuses to put objects there.
RAY_DISK_FULL = 0.95
# Ray itself took 1 GiB, and a worker that had imported torch and torchvision 0.7 GiB: two trials and the driver.
MEMORY_WANTED = 4 * GIB


class Check(NamedTuple):
    """One thing that was looked at. `ok` is None where it may matter; `advice` says what to do unless `ok` is True."""

    name: str
    ok: bool | None
    found: str
    advice: str


def doctor(output: Path, address: str | None) -> list[Check]:
    """Looks at this machine without starting Ray and, where `address` or RAY_ADDRESS names one, at the cluster.

    `output` is where runs would be written; it is not made. What cannot be looked at is a check that failed: nothing
    is raised, and a cluster that does not answer costs at most `ANSWER_S` seconds.
    """
    folder = output.absolute()
    address = resolve(address)
    memory = _free_memory()
    checks = [
        *_versions(),
        _gpu(),
        _torchvision(),
        _cores(),
        _memory(memory),
        _shared_memory(memory),
        _writable(folder),
        _disk(folder),
        _ray_disk(),
        _hostname(address),
        _interface(),
        _ray_address(address),
        _token(address),
    ]
    return checks + (_cluster(folder, address) if address else [])


def resolve(address: str | None) -> str | None:
    """Which cluster is meant; None for Ray on this machine."""
    # As ray.init does it: RAY_ADDRESS says which cluster `auto` is, and `local` is none.
    if address in (None, "", "auto"):
        address = os.environ.get("RAY_ADDRESS") or address
    return None if address in (None, "", "local") else address


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


# This machine ----------------------------------------------------------------------------------------------------


def _versions() -> list[Check]:
    try:
        python = metadata.metadata("raymtl")["Requires-Python"]
        required = metadata.requires("raymtl") or []
    except metadata.PackageNotFoundError:
        return [
            Check("python", True, platform.python_version(), ""),
            Check("packages", None, "raymtl is not installed, so nothing says what it needs", f"{INSTALL} ."),
        ]
    return [_python(python), *_packages(required)]


def _python(required: str) -> Check:
    found = platform.python_version()
    ok = SpecifierSet(required).contains(found, prereleases=True)
    return Check("python", ok, found, f"Make a virtual environment with a Python {required}.")


def _packages(required: Iterable[str]) -> list[Check]:
    """One check for all requirements that are met, and one for each that is not."""
    met, checks = [], []
    for text in required:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, wanted = requirement.name, requirement.specifier
        found = _version(name)
        if found and wanted.contains(found, prereleases=True):
            met.append(f"{name} {found}")
        else:
            advice = f"raymtl needs {name} {wanted}: {INSTALL} ."
            checks.append(Check(name, False, found or "not installed", advice))
    return [Check("packages", True, ", ".join(met) or "none", ""), *checks]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpu() -> Check:
    try:
        import torch
    except Exception as error:  # a library that is missing or of another build raises as it likes
        return Check("torch", False, _first_line(error), f"{INSTALL} --force-reinstall torch torchvision")
    with warnings.catch_warnings():
        # torch says in a warning that the driver is too old; the advice below says so too.
        warnings.simplefilter("ignore")
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if names:
        return Check("gpu", True, ", ".join(names), "")
    if shutil.which("nvidia-smi"):
        found = f"none for torch {torch.__version__}, though NVIDIA's tools are here"
        return Check("gpu", None, found, "Look at nvidia-smi; take a CUDA build of torch, or a newer driver.")
    return Check("gpu", True, "none; torch computes on the CPU", "")


def _torchvision() -> Check:
    try:
        import torchvision
    except Exception as error:  # RuntimeError for operators that torch does not know, OSError for libraries
        why = "torchvision was built for another torch than this one (CPU and CUDA builds differ too)"
        reason = why if "torchvision::" in str(error) else "torchvision does not go with this torch"
        advice = f"{reason}. Install both together: {INSTALL} --force-reinstall torch torchvision"
        return Check("torchvision", False, _first_line(error), advice)
    return Check("torchvision", True, f"{torchvision.__version__}, imports with torch", "")


def _kernel_numbers(path: str) -> list[float]:
    """The numbers in a file of the kernel's; none where there is no such file, or it says `max`."""
    try:
        return [float(word) for word in Path(path).read_text().split()]
    except (OSError, ValueError):
        return []


def _cores() -> Check:
    cores: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{cores:g} for this process, of {os.cpu_count()}"
    group = Path("/sys/fs/cgroup")
    quota = _kernel_numbers(f"{group}/cpu.max") or [
        *_kernel_numbers(f"{group}/cpu/cpu.cfs_quota_us"),
        *_kernel_numbers(f"{group}/cpu/cpu.cfs_period_us"),
    ]
    if len(quota) == 2 and 0 < quota[0] < cores * quota[1]:  # version 1 writes -1 for no limit
        cores = quota[0] / quota[1]
        found += f"; the container is limited to {cores:g}"
    advice = "Trials run one at a time; give the process or the container more cores."
    return Check("cores", True if cores >= 2 else None, found, advice)


def _free_memory() -> float | None:
    """Bytes that programs may still take, within the container's limit; None where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    group = "/sys/fs/cgroup"
    limit = _kernel_numbers(f"{group}/memory.max") or _kernel_numbers(f"{group}/memory/memory.limit_in_bytes")
    return min([free, *limit])


def _memory(free: float | None) -> Check:
    if free is None:
        return Check("memory", True, "this system does not say how much is free", "")
    advice = (
        "Ray takes about 1 GiB and each worker about 0.7 GiB before it computes. Close other programs, or lower "
        "tune.concurrency and train.workers."
    )
    return Check("memory", True if free >= MEMORY_WANTED else None, f"{free / GIB:.1f} GiB free", advice)


def _shared_memory(free: float | None) -> Check:
    try:
        space = os.statvfs("/dev/shm")
    except OSError:
        return Check("/dev/shm", True, "not on this system; Ray uses the disk", "")
    have = space.f_bavail * space.f_frsize
    want = min(STORE_SHARE * (free or 0), STORE_MOST, max(STORE_LEAST_CAP, 0.95 * have))
    advice = (
        "Ray would keep its objects on the disk, which is slow. Enlarge /dev/shm; for a container, "
        f"--shm-size={want * 1.1 / GIB:.1f}g."
    )
    found = f"{have / GIB:.1f} GiB free, Ray's object store wants {want / GIB:.1f}"
    return Check("/dev/shm", True if have >= want else None, found, advice)


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))


def _writable(folder: Path) -> Check:
    there = _existing(folder)
    advice = "Choose another output: --output here, `output` in the configuration."
    if not there.is_dir():
        return Check("output", False, f"{there} is a file, not a folder", advice)
    try:
        # Tried, because permissions do not tell: root passes them all, and a read-only disk has them too.
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Check("output", False, f"{there}: {error.strerror}", advice)
    return Check("output", True, f"{folder} is writable" if there == folder else f"{folder} can be made", "")


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(_existing(folder)).free
    ok = False if free < GIB else None if free < 5 * GIB else True
    return Check("disk", ok, f"{free / GIB:.1f} GiB free for the output", "Free some space, or choose another output.")


def _ray_disk() -> Check:
    folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp")
    usage = shutil.disk_usage(_existing(folder))
    share = 1 - usage.free / usage.total
    advice = f"Above {RAY_DISK_FULL:.0%} Ray puts no objects there. Free some space, or set RAY_TMPDIR to another disk."
    return Check("Ray's disk", True if share < RAY_DISK_FULL else None, f"{folder}: {share:.0%} full", advice)


def _hostname(address: str | None) -> Check:
    name = socket.gethostname()
    advice = (
        "With several machines and no GPUs, gloo would offer the others an address that they cannot reach: before Ray "
        "starts, set GLOO_SOCKET_IFNAME on each to the network interface that they share (`ip -br addr`)."
    )
    try:
        resolved = socket.gethostbyname(name)
    except OSError:
        resolved = ""
    if resolved and not resolved.startswith("127."):
        return Check("hostname", True, f"{name} is {resolved}", "")
    # One machine alone is content with itself.
    ok = None if address and not os.environ.get("GLOO_SOCKET_IFNAME") else True
    return Check("hostname", ok, f"{name} is {resolved}" if resolved else f"{name} has no address", advice)


def _interface() -> Check:
    chosen = os.environ.get("GLOO_SOCKET_IFNAME", "")
    have = [name for _, name in socket.if_nameindex()]
    unknown = [name for name in chosen.split(",") if name and name not in have]
    advice = f"gloo will not start: {', '.join(unknown)} is not among the interfaces {', '.join(have)}."
    return Check("GLOO_SOCKET_IFNAME", not unknown, chosen or "not set; the hostname decides", advice)


def _ray_address(address: str | None) -> Check:
    found = os.environ.get("RAY_ADDRESS") or "not set"
    goes = f"runs go to {address}" if address else "Ray starts on this machine"
    return Check("RAY_ADDRESS", True, f"{found}; {goes}", "")


def _token(address: str | None) -> Check:
    """Which token this process would show to a cluster, or ask for when it starts one."""
    name = "token"
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode not in ("", "token"):
        found = f"RAY_AUTH_MODE={mode}: whoever reaches Ray's ports can run programs here"
        return Check(name, None, found, "Set RAY_AUTH_MODE=token wherever Ray starts, or take the variable away.")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Check(name, True, "from RAY_AUTH_TOKEN", "")
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given or "~/.ray/auth_token").expanduser()
    if os.path.exists(path):
        ok = None if path.stat().st_mode & 0o077 else True
        return Check(name, ok, f"from {path}" + ("" if ok else ", which others can read"), f"chmod 600 {path}")
    if given:
        advice = "Copy the cluster's token there, or correct RAY_AUTH_TOKEN_PATH."
        return Check(name, False, f"RAY_AUTH_TOKEN_PATH={given}: no such file", advice)
    if address:
        advice = (
            "A cluster that asks for its token will refuse. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH; if the "
            "cluster has no token, anybody who reaches its ports can run programs on it: start it again with one."
        )
        return Check(name, None, "none", advice)
    return Check(name, True, "none yet; Ray makes one when it starts here", "")


# The cluster -----------------------------------------------------------------------------------------------------


def _cluster(folder: Path, address: str) -> list[Check]:
    reason = refusal(address)
    return [_unreachable(address, reason)] if reason else _asked(folder, address)


def refusal(address: str) -> str | None:
    """Why no connection to the address comes about; None where something listens, or it names no host and port.

    To be asked before ray.init, which tries a dead address for minutes.
    """
    endpoint = _endpoint(address)
    if endpoint:
        try:
            socket.create_connection(endpoint, timeout=TCP_S).close()
        except OSError as error:
            return error.strerror or _first_line(error)
    return None


def _endpoint(address: str) -> tuple[str, int] | None:
    """Host and port, where the address has them."""
    try:
        parts = urlsplit(f"//{address.rpartition('://')[2]}")
        return (parts.hostname, parts.port) if parts.hostname and parts.port else None
    except ValueError:
        return None


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
        found = [_unreachable(address, _first_line(error))]
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
    path = _existing(folder) / f".raymtl-doctor-{uuid.uuid4().hex}"
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
        {"python": platform.python_version(), **{name: _version(name) for name in ("raymtl", "ray", "torch")}}
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
