"""What the doctor makes of the nodes' answers; nothing is asked here."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from packaging.version import Version

from raymtl.cluster.doctor.check import FLOORS, GIB, INSTALL, Check, version

PACKAGES = tuple(FLOORS)
SAME = ("python", "raymtl", "ray", "torch")
# Folders are told apart by when they were written, and steps of several machines stand in one log.
CLOCK_S = 2.0
# Above this share of a full disk Ray refuses to put objects there.
RAY_DISK_FULL = 0.95


class Answer(NamedTuple):
    """What a node says of itself, and when it was asked, what its clock showed then, and when it
    had answered.
    """

    about: Mapping[str, Any]
    asked: float = 0.0
    told: float = 0.0
    answered: float = 0.0
    unread: Sequence[str] = ()
    """Nodes that wrote a file which this one did not find."""


Answers = Mapping[str, Answer]


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
    return Check(
        "cluster's resources", True if cpus else None, f"{cpus:g} CPU, {gpus:g} GPU", advice
    )


def same_versions(answers: Answers) -> Check:
    """Whether all nodes have this process's versions, whatever their builds (`+cpu`, `+cu128`)."""

    def comparable(versions: Mapping[str, Any]) -> dict[str, str]:
        return {key: (versions.get(key) or "no").partition("+")[0] for key in SAME}

    here = comparable(
        {"python": platform.python_version(), **{name: version(name) for name in SAME[1:]}}
    )
    other = [
        f"{name}: {key} {found}, here {here[key]}"
        for name, answer in answers.items()
        for key, found in comparable(answer.about).items()
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


def floors(answers: Answers) -> Check:
    """Whether any node has a version with a hole that is known."""
    old = [
        f"{name}: {found}" for name, answer in answers.items() for found in too_old(answer.about)
    ]
    return Check(
        "security floor on the nodes",
        not old,
        "; ".join(old) or "no version with a known hole",
        f"{INSTALL} . there.",
    )


ALLOW_OPEN = "RAYMTL_ALLOW_OPEN_CLUSTER"


def authentication(answers: Answers) -> Check:
    """Whether Ray asks for its token everywhere; where it does not, the user can say that this is
    meant.
    """
    open_ = [name for name, answer in answers.items() if answer.about.get("token") is False]
    unknown = [name for name, answer in answers.items() if answer.about.get("token") is None]
    advice = (
        "Start Ray with RAY_AUTH_MODE=token on every node: else who reaches its ports can run "
        f"programs there. Where nobody else can, set {ALLOW_OPEN}=1."
    )
    if open_:
        allowed = os.environ.get(ALLOW_OPEN) == "1"
        return Check(
            "token on the nodes",
            None if allowed else False,
            f"not asked for on {', '.join(open_)}",
            advice,
        )
    if unknown:
        return Check("token on the nodes", None, f"{', '.join(unknown)} cannot tell", advice)
    return Check("token on the nodes", True, "asked for everywhere", "")


def clocks(answers: Answers) -> Check:
    """Whether any node's clock differs for sure: by more than asking it took."""
    off = []
    for name, answer in answers.items():
        least = max(answer.told - answer.answered, answer.asked - answer.told)
        if least > CLOCK_S:
            off.append(
                f"{name} is {least:.0f} s {'ahead' if answer.told > answer.answered else 'behind'}"
            )
    advice = (
        "Let a time service (chrony, systemd-timesyncd) set the clocks: the newest run is told by "
        "when it was written."
    )
    return Check(
        "clocks",
        None if off else True,
        "; ".join(off) or f"none differs by over {CLOCK_S:g} s",
        advice,
    )


def interfaces(answers: Answers) -> Check:
    """Whether gloo and NCCL will take an interface that others reach."""
    wrong, weak = [], []
    for name, answer in answers.items():
        about = answer.about
        for variable, key in (("GLOO_SOCKET_IFNAME", "gloo"), ("NCCL_SOCKET_IFNAME", "nccl")):
            # NCCL takes beginnings, with = before a whole name and ^ before what is not to be used.
            chosen = [
                part
                for part in str(about.get(key) or "").split(",")
                if part and part[0] not in "^="
            ]
            starts = [
                part for part in chosen if not any(i.startswith(part) for i in about["interfaces"])
            ]
            if starts:
                wrong.append(
                    f"{name}: {variable}={','.join(starts)} is none of "
                    f"{', '.join(about['interfaces'])}"
                )
        if (
            len(answers) > 1
            and not about.get("gloo")
            and str(about.get("resolves") or "127.").startswith("127.")
        ):
            weak.append(f"{name}: its hostname is {about.get('resolves') or 'not resolved'}")
    advice = (
        "Set GLOO_SOCKET_IFNAME to the interface that the machines share (`ip -br addr`) before "
        "Ray starts there: gloo takes the one that the hostname stands for."
    )
    found = "; ".join([*wrong, *weak]) or "every node offers an address that others reach"
    return Check(
        "interfaces on the nodes", False if wrong else None if weak else True, found, advice
    )


def disks(answers: Answers) -> Check:
    """Whether Ray can put objects on every node's disk."""
    full = [
        f"{name}: {answer.about['disk_share']:.0%} full, {answer.about['disk_free'] / GIB:.1f} GiB "
        "free"
        for name, answer in answers.items()
        if answer.about["disk_share"] >= RAY_DISK_FULL
    ]
    advice = (
        f"Above {RAY_DISK_FULL:.0%} Ray puts no objects there. Free some space, or set RAY_TMPDIR "
        "to another disk."
    )
    return Check(
        "disks of the nodes",
        None if full else True,
        "; ".join(full) or "all have room for objects",
        advice,
    )


def shared(folder: Path, answers: Answers) -> Check:
    """Whether what one node writes under the output is read by every other."""
    blind = [name for name, answer in answers.items() if not answer.about["sees"]]
    barred = [
        name
        for name, answer in answers.items()
        if answer.about["sees"] and not answer.about["writes"]
    ]
    apart = [name for name, answer in answers.items() if name not in blind and answer.unread]
    advice = (
        "The run folder must be on storage that all nodes see under the same path and may write "
        "to: NFS, EFS, FSx. Mount it everywhere, and give a folder on it as output."
    )
    if blind:
        found = [f"a folder in {folder} is not seen on {', '.join(blind)}"]
    else:
        found = []
    found += [f"{folder} is read-only on {', '.join(barred)}"] if barred else []
    found += (
        [f"what other nodes write to {folder} is not read on {', '.join(apart)}"] if apart else []
    )
    return Check(
        "shared output", not found, "; ".join(found) or f"{folder} is the same on all nodes", advice
    )
