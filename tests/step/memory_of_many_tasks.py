"""Prints the peak memory of a step of many tasks, in MiB: python -m tests.step.memory_of_many_tasks METHOD.

The peak is that of the process (VmHWM) above what it held before the step, after a first step.
"""

import sys
from pathlib import Path

import torch

from raymtl.encoders import MLPSpec
from raymtl.learners import MAML
from raymtl.sharing import HardSpec
from raymtl.step.algorithm import Algorithm
from raymtl.step.meta_gradient import meta_gradient
from raymtl.tasks import regression
from raymtl.types import Batch, Episode
from raymtl.weighting import PCGradSpec, StaticSpec

NUM_TASKS = 1000
METHODS = {"static": StaticSpec, "pcgrad": PCGradSpec}


def mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) / 1024


def main(method: str) -> None:
    torch.set_num_threads(1)
    tasks = tuple(regression(f"t{number}", 0.0, 1.0) for number in range(NUM_TASKS))
    model = HardSpec().build(tasks, [MLPSpec(hidden=(128, 128)).build((16,))])
    algorithm = Algorithm(tasks, model, METHODS[method]().build(tasks), MAML(inner_steps=0))
    targets = {task.name: torch.randn(1, 256) for task in tasks}
    batch = Batch(torch.randn(1, 256, 16), targets, {})
    params = algorithm.init_params()
    for _ in range(2):
        before = mib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
        meta_gradient(algorithm, params, Episode(batch, batch))
        peak = mib("VmHWM") - before
    print(peak)


if __name__ == "__main__":
    main(sys.argv[1])
