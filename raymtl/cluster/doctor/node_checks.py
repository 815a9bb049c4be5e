"""The checks of a cluster, made of what its nodes report; no node is asked here."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from packaging.version import Version

from raymtl.cluster.doctor.check import FLOORS, GIB, INSTALL, Check, version, warning

PACKAGES = tuple(FLOORS)
SAME = ("python", "raymtl", "ray", "torch")
# Folders are told apart by when they were written, and steps of several machines stand in one log.
CLOCK_S = 2.0
# Above this share of a full disk Ray refuses to put objects there.
RAY_DISK_FULL = 0.95


class NodeReport(NamedTuple):
    """What a node reports of itself.

    This machine's clock showed `asked_at` and `answered_at`, in seconds, when the node was asked
    and when it had answered; the node's own clock showed `node_time` in between.
    """

    facts: Mapping[str, Any]
    asked_at: float = 0.0
    node_time: float = 0.0
    answered_at: float = 0.0
    unread: Sequence[str] = ()
    """The nodes that wrote a file which this one did not find."""


NodeReports = Mapping[str, NodeReport]


def alive(names: list[str], silent: list[str], waited_s: float) -> Check:
    """Whether every node answered."""
    found = f"{len(names)} alive: {', '.join(names)}"
    if silent:
        found += f"; no answer within {waited_s:g} s from {', '.join(silent)}"
    advice = (
        "Look at the logs under /tmp/ray/session_latest/logs there, and at the firewall between "
        "the nodes."
    )
    return Check("nodes", not silent, found, advice)


def resources(total: Mapping[str, float]) -> Check:
    """Whether any node takes work."""
    cpus, gpus = total.get("CPU", 0), total.get("GPU", 0)
    advice = (
        "No node takes work. Wait until workers have joined; an autoscaled cluster starts them "
        "when asked (`request_resources`, see cluster.yaml)."
    )
    return warning("cluster's resources", cpus > 0, f"{cpus:g} CPU, {gpus:g} GPU", advice)


def same_versions(reports: NodeReports) -> Check:
    """Whether all nodes have this process's versions, whatever their builds (`+cpu`, `+cu128`)."""

    def comparable(versions: Mapping[str, Any]) -> dict[str, str]:
        return {key: (versions.get(key) or "no").partition("+")[0] for key in SAME}

    here = comparable(
        {"python": platform.python_version(), **{name: version(name) for name in SAME[1:]}}
    )
    other = [
        f"{name}: {key} {found}, here {here[key]}"
        for name, report in reports.items()
        for key, found in comparable(report.facts).items()
        if found != here[key]
    ]
    same = ", ".join(f"{key} {found}" for key, found in here.items())
    advice = f"Install the same everywhere: {INSTALL} . (`ray up` does so), with the same Python."
    return Check("versions on the nodes", not other, "; ".join(other) or f"all have {same}", advice)


def too_old(versions: Mapping[str, Any]) -> list[str]:
    """What of these versions has a hole that is known, and which."""
    found = []
    for package, (floor, hole) in FLOORS.items():
        have = versions.get(package)
        if have and Version(have) < Version(floor):
            found.append(f"{package} {have} ({hole}; {floor} is safe)")
    return found


def floors(reports: NodeReports) -> Check:
    """Whether any node has a version with a hole that is known."""
    old = [
        f"{name}: {found}" for name, report in reports.items() for found in too_old(report.facts)
    ]
    return Check(
        "security floor on the nodes",
        not old,
        "; ".join(old) or "no version with a known hole",
        f"{INSTALL} . there.",
    )


ALLOW_OPEN = "RAYMTL_ALLOW_OPEN_CLUSTER"


def authentication(reports: NodeReports) -> Check:
    """Whether Ray asks for its token everywhere; where it does not, the user can say that this is
    meant.
    """
    open_ = [name for name, report in reports.items() if report.facts.get("token") is False]
    unknown = [name for name, report in reports.items() if report.facts.get("token") is None]
    advice = (
        "Start Ray with RAY_AUTH_MODE=token on every node: else who reaches its ports can run "
        f"programs there. Where nobody else can, set {ALLOW_OPEN}=1."
    )
    if open_:
        ok: bool | None = False
        if os.environ.get(ALLOW_OPEN) == "1":
            ok = None
        return Check("token on the nodes", ok, f"not asked for on {', '.join(open_)}", advice)
    if unknown:
        return Check("token on the nodes", None, f"{', '.join(unknown)} cannot tell", advice)
    return Check("token on the nodes", True, "asked for everywhere", "")


def clocks(reports: NodeReports) -> Check:
    """Whether any node's clock differs for sure: by more than asking it took."""
    off = []
    for name, report in reports.items():
        ahead = report.node_time - report.answered_at
        behind = report.asked_at - report.node_time
        if ahead > CLOCK_S:
            off.append(f"{name} is {ahead:.0f} s ahead")
        if behind > CLOCK_S:
            off.append(f"{name} is {behind:.0f} s behind")
    advice = (
        "Let a time service (chrony, systemd-timesyncd) set the clocks: the newest run is told by "
        "when it was written."
    )
    return warning(
        "clocks",
        not off,
        "; ".join(off) or f"none differs by over {CLOCK_S:g} s",
        advice,
    )


def interfaces(reports: NodeReports) -> Check:
    """Whether gloo and NCCL will take an interface that others reach."""
    wrong, weak = [], []
    for name, report in reports.items():
        facts = report.facts
        for variable, key in (("GLOO_SOCKET_IFNAME", "gloo"), ("NCCL_SOCKET_IFNAME", "nccl")):
            unknown = _unknown_interfaces(str(facts.get(key) or ""), facts["interfaces"])
            if unknown:
                wrong.append(
                    f"{name}: {variable}={','.join(unknown)} is none of "
                    f"{', '.join(facts['interfaces'])}"
                )
        address = facts.get("resolves")
        is_loopback = str(address or "127.").startswith("127.")
        if len(reports) > 1 and not facts.get("gloo") and is_loopback:
            weak.append(f"{name}: its hostname is {address or 'not resolved'}")
    advice = (
        "Set GLOO_SOCKET_IFNAME to the interface that the machines share (`ip -br addr`) before "
        "Ray starts there: gloo takes the one that the hostname stands for."
    )
    found = "; ".join([*wrong, *weak]) or "every node offers an address that others reach"
    ok: bool | None = True
    if wrong:
        ok = False
    elif weak:
        ok = None
    return Check("interfaces on the nodes", ok, found, advice)


def _unknown_interfaces(variable: str, interfaces: Sequence[str]) -> list[str]:
    """The beginnings of names in a variable that no interface has.

    NCCL takes beginnings, with = before a whole name and ^ before what is not to be used.
    """
    unknown = []
    for start in variable.split(","):
        if not start or start[0] in "^=":
            continue
        if not any(interface.startswith(start) for interface in interfaces):
            unknown.append(start)
    return unknown


def disks(reports: NodeReports) -> Check:
    """Whether Ray can put objects on every node's disk."""
    full = [
        f"{name}: {report.facts['disk_share']:.0%} full, {report.facts['disk_free'] / GIB:.1f} GiB "
        "free"
        for name, report in reports.items()
        if report.facts["disk_share"] >= RAY_DISK_FULL
    ]
    advice = (
        f"Above {RAY_DISK_FULL:.0%} Ray puts no objects there. Free some space, or set RAY_TMPDIR "
        "to another disk."
    )
    return warning(
        "disks of the nodes",
        not full,
        "; ".join(full) or "all have room for objects",
        advice,
    )


def shared(folder: Path, reports: NodeReports) -> Check:
    """Whether what one node writes under the output is read by every other."""
    not_seen, read_only, not_read = [], [], []
    for name, report in reports.items():
        if not report.facts["sees"]:
            not_seen.append(name)
            continue
        if not report.facts["writes"]:
            read_only.append(name)
        if report.unread:
            not_read.append(name)
    found = []
    if not_seen:
        found.append(f"a folder in {folder} is not seen on {', '.join(not_seen)}")
    if read_only:
        found.append(f"{folder} is read-only on {', '.join(read_only)}")
    if not_read:
        found.append(f"what other nodes write to {folder} is not read on {', '.join(not_read)}")
    advice = (
        "The run folder must be on storage that all nodes see under the same path and may write "
        "to: NFS, EFS, FSx. Mount it everywhere, and give a folder on it as output."
    )
    return Check(
        "shared output", not found, "; ".join(found) or f"{folder} is the same on all nodes", advice
    )
