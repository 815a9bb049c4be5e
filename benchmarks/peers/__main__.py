"""Times raymtl beside other libraries, in turns on one core.

    python -m benchmarks.peers                        # every subject; prints rows, writes Parquet
    python -m benchmarks.peers --page docs/performance.md
    python -m benchmarks.peers "conv4 maml" --rounds 20     # the subjects whose names begin so
    python -m benchmarks.peers --ours --device cuda         # raymtl alone, which needs torch only

Before a subject is timed, gradients of all libraries are compared with raymtl's in float64.
Libraries that are not installed are left out and named. Times are those of the process or, on a
GPU, between events. A ratio is a way's time over raymtl's in the same round: above 1 raymtl is the
faster one. Peak memory is measured in a process of its own.
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import conv4, many_tasks, multi_task, sampling, sinusoid, training
from benchmarks.peers.installed import Missing, is_installed, versions
from benchmarks.peers.memory import peak_mib
from benchmarks.peers.report import read_rows, write_page, write_rows
from benchmarks.peers.subject import PARITY, Setting, Subject, parity
from benchmarks.peers.timing import Times, in_turns

LIBRARIES = ("learn2learn", "higher", "torchopt", "torchjd", "LibMTL", "jax")
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""What raymtl gives its workers; here all libraries have it."""


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("subject", nargs="*", help="beginnings of names; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--ours", action="store_true", help="no other library")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; the numbers say nothing")
    parser.add_argument("--output", type=Path, default=Path("peers.parquet"))
    parser.add_argument("--page", type=Path, help="write the tables of the output as Markdown too")
    parser.add_argument("--list", action="store_true", help="print the names of all subjects")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main() -> None:
    given = arguments()
    prepare_process()
    every = {subject.name: subject for subject in all_subjects()}
    if given.list:
        print("\n".join(every))
        return
    chosen = _chosen(every, given.subject)
    setting = Setting(given.device, given.ours, given.peak, given.quick)
    if given.peak:
        print(peak_mib(chosen[0].contest(setting).ways[given.peak], given.device))
        return
    if not is_installed("pyarrow"):
        print("pyarrow is not installed, so nothing is written to a file.")
    missing = [name for name in LIBRARIES if not is_installed(name)]
    if missing and not given.ours:
        print(f"Not installed and left out: {', '.join(missing)}.")
    for subject in chosen:
        keep_rows(given, measured(subject, setting, given.rounds))
    if given.page:
        write_page(given.page, read_rows(given.output))


def all_subjects() -> list[Subject]:
    """Every subject, in the order of the page."""
    modules = (conv4, sinusoid, multi_task, many_tasks, sampling, training)
    return list(chain.from_iterable(module.subjects() for module in modules))


def measured(subject: Subject, setting: Setting, rounds: int) -> list[dict[str, Any]]:
    """A row for each way, which it prints too; no row where the subject needs what is missing."""
    print(f"{subject.name}:", flush=True)
    try:
        if not setting.ours:
            _check_parity(subject, setting)
        contest = subject.contest(setting)
        timed = in_turns(contest.ways, contest.base, rounds, setting.device)
    except (Missing, ImportError) as error:
        print(f"  left out, for want of {error}", flush=True)
        return []
    rows = []
    for way, times in timed.items():
        share = None
        if contest.gigaflop is not None:
            share = contest.gigaflop / (times.ms / 1000) / times.gflops
        peak = None
        if way in contest.with_peaks and not setting.quick:
            peak = _peak_in_own_process(subject, setting, way)
        row: dict[str, Any] = {"subject": subject.name, "way": way, "base": way == contest.base}
        row |= {"unit": subject.unit, **times._asdict(), "gigaflop": contest.gigaflop}
        row |= {"share": share, "peak_mib": peak}
        rows.append(row | _machine(setting, rounds))
        print(f"  {way:32s} {_printed(times, share, peak)}", flush=True)
    return rows


def keep_rows(given: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
    """Puts the rows of a subject into the output, in the place of earlier ones of the same."""
    if not rows or not is_installed("pyarrow"):
        return
    before = read_rows(given.output) if given.output.exists() else []
    every = [row for row in before if row["subject"] != rows[0]["subject"]] + [*rows]
    order = {subject.name: number for number, subject in enumerate(all_subjects())}
    write_rows(given.output, sorted(every, key=lambda row: order.get(row["subject"], 0)))


def _chosen(every: Mapping[str, Subject], starts: Sequence[str]) -> list[Subject]:
    for start in starts:
        if not any(name.startswith(start) for name in every):
            sys.exit(f"subject: expected the beginning of {', '.join(every)}, got '{start}'.")
    found = []
    for name, subject in every.items():
        if name in starts or name.startswith(tuple(starts)) or not starts:
            found.append(subject)
    return found


def _check_parity(subject: Subject, setting: Setting) -> None:
    """Ends the program where a gradient is not raymtl's in float64."""
    gaps = parity(subject, setting)
    for name, gap in gaps.items():
        if gap > PARITY:
            sys.exit(f"{name}: its gradient differs by {gap:.0e} of raymtl's largest entry.")
    if gaps:
        worst = max(gaps.values())
        print(f"  same gradient within {worst:.0e} in float64: {', '.join(gaps)}", flush=True)


def _peak_in_own_process(subject: Subject, setting: Setting, way: str) -> float:
    command = [sys.executable, "-m", "benchmarks.peers", subject.name, "--peak", way]
    command += ["--device", setting.device]
    if setting.ours:
        command.append("--ours")
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(ended.stdout.splitlines()[-1])


def _printed(times: Times, share: float | None, peak: float | None) -> str:
    text = (
        f"{times.ms:10.3f} ms {times.ratio:7.2f} ({times.ratio_low:.2f} to {times.ratio_high:.2f})"
    )
    if share is not None:
        text += f" {100 * share:5.0f} %"
    if peak is not None:
        text += f" {peak:7.0f} MiB"
    return text


def _machine(setting: Setting, rounds: int) -> dict[str, Any]:
    return {
        "device": setting.device,
        "rounds": rounds,
        "torch": torch.__version__,
        "machine": _processor(setting.device),
        "libraries": "" if setting.ours else ", ".join(versions(LIBRARIES)),
    }


def _processor(device: str) -> str:
    """The model of the processor that computes."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    about = Path("/proc/cpuinfo")
    if about.exists():
        for line in about.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def prepare_process() -> None:
    """One thread on one core, with raymtl's allocator settings.

    glibc reads these once, when a process begins, so the program starts itself anew with them.
    """
    if not ALLOCATOR.keys() <= os.environ.keys():
        words = [sys.executable, "-m", "benchmarks.peers", *sys.argv[1:]]
        os.execve(sys.executable, words, {**ALLOCATOR, **os.environ})
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


if __name__ == "__main__":
    main()
