"""What `raymtl doctor` looks at on this machine, without starting Ray. Nothing is changed."""

import os
import shutil
import socket
import tempfile
from pathlib import Path

from raymtl.cluster.doctor import package_checks
from raymtl.cluster.doctor.check import GIB, Check, warning
from raymtl.cluster.doctor.node_checks import RAY_DISK_FULL

# Ray's object store asks for this share of the free memory, at most this much, and for no more than
# /dev/shm has, unless that is less than the last figure: then it goes to the disk.
STORE_SHARE, STORE_MOST, STORE_LEAST_CAP = 0.3, 200 * 10**9, 10**10
# Ray itself took 1 GiB, and a worker that had imported torch and torchvision 0.7 GiB: two trials
# and the driver.
MEMORY_WANTED = 4 * GIB


def look(folder: Path, address: str | None) -> list[Check]:
    """Checks of this machine; `folder` is where runs would be written, and is not made."""
    memory = _free_memory()
    return [
        *package_checks.versions(),
        package_checks.floors(),
        package_checks.gpu(),
        package_checks.torchvision_build(),
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
        _parquet(),
    ]


def resources() -> dict[str, float]:
    """What Ray would count here."""
    import torch

    return {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}


def _kernel_numbers(path: str) -> list[float]:
    """The numbers in a file of the kernel's; none where there is no such file, or it says `max`."""
    try:
        return [float(word) for word in Path(path).read_text().split()]
    except (OSError, ValueError):
        return []


def _cores() -> Check:
    cores: float
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
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
    return warning("cores", cores >= 2, found, advice)


def _free_memory() -> float | None:
    """Bytes that programs may still take, within the container's limit; None where the system does
    not say.
    """
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    group = "/sys/fs/cgroup"
    limit = _kernel_numbers(f"{group}/memory.max") or _kernel_numbers(
        f"{group}/memory/memory.limit_in_bytes"
    )
    return min([free, *limit])


def _memory(free: float | None) -> Check:
    if free is None:
        return Check("memory", True, "this system does not say how much is free", "")
    advice = (
        "Ray takes about 1 GiB and each worker about 0.7 GiB before it computes. Close other "
        "programs, or lower tune.concurrency and train.workers."
    )
    return warning("memory", free >= MEMORY_WANTED, f"{free / GIB:.1f} GiB free", advice)


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
    return warning("/dev/shm", have >= want, found, advice)


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))


def _writable(folder: Path) -> Check:
    nearest = existing(folder)
    advice = "Choose another output: --output here, `output` in the configuration."
    if not nearest.is_dir():
        return Check("output", False, f"{nearest} is a file, not a folder", advice)
    try:
        # Tried, because permissions do not tell: root passes them all, and a read-only disk has
        # them too.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        return Check("output", False, f"{nearest}: {error.strerror}", advice)
    found = f"{folder} can be made"
    if nearest == folder:
        found = f"{folder} is writable"
    return Check("output", True, found, "")


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(existing(folder)).free
    if free < GIB:
        ok = False
    elif free < 5 * GIB:
        ok = None
    else:
        ok = True
    return Check(
        "disk",
        ok,
        f"{free / GIB:.1f} GiB free for the output",
        "Free some space, or choose another output.",
    )


def _ray_disk() -> Check:
    folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp")
    usage = shutil.disk_usage(existing(folder))
    share = 1 - usage.free / usage.total
    advice = (
        f"Above {RAY_DISK_FULL:.0%} Ray puts no objects there. Free some space, or set RAY_TMPDIR "
        "to another disk."
    )
    return warning("Ray's disk", share < RAY_DISK_FULL, f"{folder}: {share:.0%} full", advice)


def _hostname(address: str | None) -> Check:
    name = socket.gethostname()
    advice = (
        "With several machines and no GPUs, gloo would offer the others an address that they "
        "cannot reach: before Ray starts, set GLOO_SOCKET_IFNAME on each to the network interface "
        "that they share (`ip -br addr`)."
    )
    try:
        resolved = socket.gethostbyname(name)
    except OSError:
        resolved = ""
    if resolved and not resolved.startswith("127."):
        return Check("hostname", True, f"{name} is {resolved}", "")
    found = f"{name} has no address"
    if resolved:
        found = f"{name} is {resolved}"
    # One machine alone is content with itself.
    ok = not address or bool(os.environ.get("GLOO_SOCKET_IFNAME"))
    return warning("hostname", ok, found, advice)


def _interface() -> Check:
    chosen = os.environ.get("GLOO_SOCKET_IFNAME", "")
    have = [name for _, name in socket.if_nameindex()]
    unknown = [name for name in chosen.split(",") if name and name not in have]
    advice = (
        f"gloo will not start: {', '.join(unknown)} is not among the interfaces {', '.join(have)}."
    )
    return Check(
        "GLOO_SOCKET_IFNAME", not unknown, chosen or "not set; the hostname decides", advice
    )


def _ray_address(address: str | None) -> Check:
    found = os.environ.get("RAY_ADDRESS") or "not set"
    if address:
        goes = f"runs go to {address}"
    else:
        goes = "Ray starts on this machine"
    return Check("RAY_ADDRESS", True, f"{found}; {goes}", "")


def _parquet() -> Check:
    given = os.environ.get("RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA", "0")
    advice = (
        "Unset RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA: with it a Parquet file can run "
        "programs here."
    )
    if given == "1":
        return Check("pickles in Parquet", False, "are read", advice)
    return Check("pickles in Parquet", True, "not read", advice)


def _token(address: str | None) -> Check:
    """Which token this process would show to a cluster, or ask for when it starts one."""
    name = "token"
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode not in ("", "token"):
        found = f"RAY_AUTH_MODE={mode}: whoever reaches Ray's ports can run programs here"
        return Check(
            name,
            None,
            found,
            "Set RAY_AUTH_MODE=token wherever Ray starts, or take the variable away.",
        )
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Check(name, True, "from RAY_AUTH_TOKEN", "")
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given or "~/.ray/auth_token").expanduser()
    if os.path.exists(path):
        if path.stat().st_mode & 0o077:
            found = f"from {path}, which others can read"
            return Check(name, None, found, f"chmod 600 {path}")
        return Check(name, True, f"from {path}", f"chmod 600 {path}")
    if given:
        advice = "Copy the cluster's token there, or correct RAY_AUTH_TOKEN_PATH."
        return Check(name, False, f"RAY_AUTH_TOKEN_PATH={given}: no such file", advice)
    if address:
        advice = (
            "A cluster that asks for its token will refuse. Set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH; if the cluster has no token, anybody who reaches its ports can "
            "run programs on it: start it again with one."
        )
        return Check(name, None, "none", advice)
    return Check(name, True, "none yet; Ray makes one when it starts here", "")
