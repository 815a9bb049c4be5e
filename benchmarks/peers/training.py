"""The loop around a step, and the step of a shipped configuration.

The loop needs packages beside torch, which are imported where they are used. `raymtl train` runs
once, on the same core; its time is that of the clock on the wall, and so is that of the bare step
beside it.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.peers.installed import Missing
from benchmarks.peers.ours import Ours, meta_batch
from benchmarks.peers.subject import Contest, Setting, Subject
from benchmarks.peers.timing import Way
from raymtl.config import load
from raymtl.data.episodes import on_device
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import meta_gradient
from raymtl.training.fastest import Way as TaskWay
from raymtl.types import MetaBatch

CONFIGS = Path(__file__).parents[2] / "tune_configs"
SINUSOID = CONFIGS / "sinusoid.yaml"
NUM_STEPS = 500
WARM_UP = 50
"""Steps at the beginning of a training that are not counted."""

Clock = Callable[[], float]


def subjects() -> list[Subject]:
    """The loop in this process and in Ray Train, and the quickstart's step."""
    return [
        Subject("training loop on the sinusoid", "step", _loop),
        Subject("raymtl train, a step", "step", _ray_train),
        Subject("raymtl train, start and end", "command", _start_and_end),
        Subject("the quickstart", "step", _quickstart),
    ]


def _loop(setting: Setting) -> Contest:
    num_steps = 60 if setting.quick else NUM_STEPS
    now = time.process_time
    if setting.device != "cpu":
        now = time.perf_counter  # each step reads a norm, and so waits for the GPU
    ways = {
        "raymtl, the step alone": _clocked(partial(_bare, now, num_steps, setting.device)),
        "raymtl, training loop": _clocked(partial(_trained, now, num_steps, setting.device)),
    }
    return Contest(ways, "raymtl, the step alone")


def _ray_train(setting: Setting) -> Contest:
    _refuse_gpu(setting)
    num_steps = 60 if setting.quick else NUM_STEPS
    ways = {
        "raymtl, the step alone": _clocked(partial(_bare, time.perf_counter, num_steps, "cpu")),
        "raymtl, through Ray Train": _clocked(lambda: _command(num_steps).step),
    }
    return Contest(ways, "raymtl, the step alone")


def _start_and_end(setting: Setting) -> Contest:
    _refuse_gpu(setting)
    num_steps = 60 if setting.quick else NUM_STEPS
    ways = {
        "raymtl, command to first step": _clocked(lambda: _command(num_steps).to_first_step),
        "raymtl, last step to exit": _clocked(lambda: _command(num_steps).to_exit),
    }
    return Contest(ways, "raymtl, command to first step")


def _quickstart(setting: Setting) -> Contest:
    """One step of the quickstart is of 8 episodes, each with three tasks and three inner steps."""
    ours = Ours.of_text((CONFIGS / "quickstart.yaml").read_text(), setting.device)
    chosen = ours.auto()
    every = [chosen, TaskWay("vmap"), TaskWay("loop"), *(TaskWay("vmap", n) for n in (2, 4))]
    ways = {f"raymtl {way}": ours.way(way)._replace(units=1) for way in every}
    ways[f"raymtl {chosen}, replay"] = ours.way(chosen, "replay")._replace(units=1)
    return Contest(ways, f"raymtl {chosen}")


def _refuse_gpu(setting: Setting) -> None:
    if setting.device != "cpu":
        raise Missing("--device cpu: the command chooses its own device")


def _clocked(clock: Clock) -> Way:
    return Way(clock, clock=clock)


def _values(num_steps: int) -> dict[str, str | int]:
    """What is changed of the shipped configuration."""
    return {
        "train.steps": num_steps,
        "train.eval_every": num_steps,
        "train.workers": 1,
        "train.task_axis": "vmap",
        "train.graph": "none",  # as the bare step runs, so that the loop alone differs
        "evaluate.val_episodes": 2,
        "evaluate.test_episodes": 2,
    }


def _bare(now: Clock, num_steps: int, device: str) -> float:
    """Milliseconds of the meta-gradient and the optimiser's move, on episodes that are there."""
    from raymtl.training.outer_step import make_optimizer, move

    experiment = load(SINUSOID, _values(num_steps))
    arrays = experiment.data.load()
    episodes: list[MetaBatch] = [
        on_device(meta_batch(experiment, arrays, step), device) for step in range(WARM_UP)
    ]
    algorithm, settings = experiment.build(), experiment.train
    params = algorithm.init_params(device)
    optimizer = make_optimizer(experiment, algorithm, params)
    execution = ExecutionConfig("vmap")
    for step in range(num_steps):
        if step == WARM_UP:
            start = now()
        own = episodes[step % WARM_UP]
        meta = meta_gradient(algorithm, params, own, execution=execution, step=step)
        move(optimizer, params, meta, settings.lr, settings.clip_norm)
    return 1000 * (now() - start) / (num_steps - WARM_UP)


def _trained(now: Clock, num_steps: int, device: str) -> float:
    """Milliseconds of a step of the training loop in this process, with its episodes and record."""
    from raymtl.training.context import TrainContext
    from raymtl.training.loop import local_batches, train_loop

    experiment = load(SINUSOID, _values(num_steps))
    arrays = experiment.data.load()
    begun: list[float] = []

    def batches(first_step: int) -> Iterator[tuple[int, int, MetaBatch]]:
        for item in local_batches(experiment, arrays)(first_step):
            yield item
            begun.append(now())  # where the step has been made and recorded

    context = TrainContext(
        report=lambda scores: None, log_step=lambda row: None, device=torch.device(device)
    )
    with tempfile.TemporaryDirectory() as folder:
        train_loop(experiment, arrays, batches, context, Path(folder))
    # The last step is followed by scores and a checkpoint.
    steps = begun[WARM_UP - 1 : -1]
    return 1000 * (steps[-1] - steps[0]) / (len(steps) - 1)


class _Run(NamedTuple):
    """Milliseconds of one call of `raymtl train`, on the wall."""

    step: float
    """The median."""
    to_first_step: float
    """From the command until the first step is made."""
    to_exit: float
    """From the last step until the command ends."""


@cache
def _command(num_steps: int) -> _Run:
    """`raymtl train` in processes of its own. TensorBoard's events say when its steps were made."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "raymtl", "train", str(SINUSOID)]
        settings = {"output": folder, **_values(num_steps)}
        for key, value in settings.items():
            words += ["--set", f"{key}={value}"]
        begun = time.time()
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
        end = time.time()
        if ended.returncode:
            raise RuntimeError(f"raymtl train failed:\n{ended.stdout}\n{ended.stderr}")
        made: dict[int, float] = {}
        for file in Path(folder).rglob("best/**/events.out.tfevents.*"):
            for event in EventFileLoader(str(file)).Load():
                if event.HasField("summary"):
                    made.setdefault(event.step, event.wall_time)
    times = sorted(made.values())
    steps = [later - earlier for earlier, later in pairwise(times[WARM_UP:])]
    median = statistics.median(steps)
    return _Run(1000 * median, 1000 * (times[0] - begun), 1000 * (end - times[-1]))
