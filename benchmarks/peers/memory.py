"""Peak memory of one run."""

import re
import resource
from pathlib import Path

import torch

from benchmarks.peers.timing import Way


def peak_mib(way: Way, device: str) -> float:
    """What a run takes beyond what stands before it, in MiB; in a fresh process."""
    before = _high_water_mib(device)
    way.run()
    return _high_water_mib(device) - before


def _high_water_mib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # Not of getrusage, whose peak begins with that of the process that started this one.
        (line,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(line) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
