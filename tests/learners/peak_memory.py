"""Prints the peak memory and the time of one outer step: python -m tests.learners.peak_memory GRADIENT STEPS [AXIS [EPISODES]].

Four episodes, or as many as are asked for, of five pictures of 28x28 to adapt to and five to judge by, second order, four blocks of 32 channels. The
peak is that of the whole process (VmHWM) above what it held before the step, after a first step on one episode has
loaded what is loaded once. Needs Linux.
"""

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import cast

# Memory that is given back must leave the process: else the peak is that of the allocator's pools.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

PR_SET_THP_DISABLE = 41  # of prctl: huge pages would round what each tensor takes up to 2 MiB


def in_mib(key: str) -> float:
    """A line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def main(gradient: str, steps: int, axis: str, num_episodes: int) -> None:
    import torch
    from torch.utils._pytree import tree_map

    from raymtl.encoders import Conv4Spec
    from raymtl.learners import MAML
    from raymtl.sharing import HardSpec
    from raymtl.step.algorithm import Algorithm
    from raymtl.step.execution import ExecutionConfig, TaskAxis
    from raymtl.step.meta_gradient import meta_gradient
    from raymtl.tasks import classification
    from raymtl.types import Batch, Episode
    from raymtl.weighting import StaticSpec

    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    torch.set_num_threads(1)
    task = classification("character", 5)
    model = HardSpec().build([task], [Conv4Spec(width=32).build((1, 28, 28))])

    def peak_and_seconds(learner: MAML, episodes: Episode) -> tuple[float, float]:
        algorithm = Algorithm((task,), model, StaticSpec().build([task]), learner)
        params = algorithm.init_params()
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
        before, start = in_mib("VmRSS"), time.perf_counter()
        meta_gradient(algorithm, params, episodes, execution=ExecutionConfig(cast(TaskAxis, axis)))
        return in_mib("VmHWM") - before, time.perf_counter() - start

    targets = torch.arange(5).repeat(num_episodes, 1)
    pictures = torch.rand(2, num_episodes, 5, 1, 28, 28)
    episodes = Episode(*(Batch(inputs, {"character": targets}, {}) for inputs in pictures))
    peak_and_seconds(
        MAML(inner_steps=1, gradient=gradient), tree_map(lambda leaf: leaf[:1], episodes)
    )
    peak, seconds = peak_and_seconds(
        MAML(inner_lr=0.01, inner_steps=steps, gradient=gradient), episodes
    )
    print(f"{gradient} {steps} {axis}: {peak:.1f} MiB {seconds:.1f} s")


if __name__ == "__main__":
    if not MALLOC.keys() <= os.environ.keys():
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.learners.peak_memory", *sys.argv[1:]],
            os.environ | MALLOC,
        )
    words = sys.argv[1:]
    if len(words) < 3:
        words.append("vmap")
    if len(words) < 4:
        words.append("4")
    main(words[0], int(words[1]), words[2], int(words[3]))
