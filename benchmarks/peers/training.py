"""The loop around a step, and the step of a shipped configuration.

`raymtl train` runs once, on as many cores as the other ways; its time is that of the clock on the
wall, and so is that of the bare step beside it.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

from benchmarks.peers.ours import Ours
from benchmarks.peers.subject import Contest, Setting, Subject
from benchmarks.peers.timing import Way
from raymtl.config import load
from raymtl.data.episodes import on_device
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import meta_gradient
from raymtl.training.context import TrainContext
from raymtl.training.fastest import Way as TaskWay
from raymtl.training.loop import local_batches, train_loop
from raymtl.training.outer_step import make_optimizer, move
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
        Subject("raymtl train on the sinusoid, on the wall", "step", _ray_train),
        Subject("the quickstart", "step", _quickstart),
    ]


def _loop(setting: Setting) -> Contest:
    num_steps = 60 if setting.quick else NUM_STEPS
    ways = {
        "raymtl, the step alone": _clocked(partial(_bare, time.process_time, num_steps)),
        "raymtl, training loop": _clocked(partial(_trained, time.process_time, num_steps)),
    }
    return Contest(ways, "raymtl, the step alone")


def _ray_train(setting: Setting) -> Contest:
    num_steps = 60 if setting.quick else NUM_STEPS
    ways = {
        "raymtl, the step alone": _clocked(partial(_bare, time.perf_counter, num_steps)),
        "raymtl, through Ray Train": _clocked(cache(partial(_command, num_steps))),
    }
    return Contest(ways, "raymtl, the step alone")


def _quickstart(setting: Setting) -> Contest:
    """One step of the quickstart is of 8 episodes, each with three tasks and three inner steps."""
    ours = Ours.of_text((CONFIGS / "quickstart.yaml").read_text(), setting.device)
    chosen = ours.auto()
    every = [chosen, TaskWay("vmap"), TaskWay("loop"), *(TaskWay("vmap", n) for n in (2, 4))]
    ways = {f"raymtl {way}": ours.way(way)._replace(units=1) for way in every}
    ways[f"raymtl {chosen}, replay"] = ours.way(chosen, "replay")._replace(units=1)
    return Contest(ways, f"raymtl {chosen}")


def _clocked(clock: Clock) -> Way:
    return Way(clock, clock=clock)


def _values(num_steps: int) -> dict[str, str | int]:
    """What is changed of the shipped configuration."""
    return {
        "train.steps": num_steps,
        "train.eval_every": num_steps,
        "train.workers": 1,
        "train.task_axis": "vmap",
        "evaluate.val_episodes": 2,
        "evaluate.test_episodes": 2,
    }


def _bare(now: Clock, num_steps: int) -> float:
    """Milliseconds of the meta-gradient and the optimiser's move, on episodes that are there."""
    experiment = load(SINUSOID, _values(num_steps))
    batches = local_batches(experiment, experiment.data.load())(0)
    episodes: list[MetaBatch] = []
    for _ in range(WARM_UP):
        _, _, built = next(batches)
        episodes.append(on_device(built, "cpu"))
    algorithm, settings = experiment.build(), experiment.train
    params = algorithm.init_params()
    optimizer = make_optimizer(experiment, algorithm, params)
    execution = ExecutionConfig("vmap")
    for step in range(num_steps):
        if step == WARM_UP:
            start = now()
        own = episodes[step % WARM_UP]
        meta = meta_gradient(algorithm, params, own, execution=execution, step=step)
        move(optimizer, params, meta, settings.lr, settings.clip_norm)
    return 1000 * (now() - start) / (num_steps - WARM_UP)


def _trained(now: Clock, num_steps: int) -> float:
    """Milliseconds of a step of the training loop in this process, with its episodes and record."""
    experiment = load(SINUSOID, _values(num_steps))
    arrays = experiment.data.load()
    begun: list[float] = []

    def batches(first_step: int) -> Iterator[tuple[int, int, MetaBatch]]:
        for item in local_batches(experiment, arrays)(first_step):
            yield item
            begun.append(now())  # where the step has been made and recorded

    context = TrainContext(report=lambda scores: None, log_step=lambda row: None)
    with tempfile.TemporaryDirectory() as folder:
        train_loop(experiment, arrays, batches, context, Path(folder))
    # The last step is followed by scores and a checkpoint.
    steps = begun[WARM_UP - 1 : -1]
    return 1000 * (steps[-1] - steps[0]) / (len(steps) - 1)


def _command(num_steps: int) -> float:
    """The median of a step's milliseconds in the record of `raymtl train`."""
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "raymtl", "train", str(SINUSOID)]
        settings = {"output": folder, **_values(num_steps)}
        for key, value in settings.items():
            words += ["--set", f"{key}={value}"]
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"raymtl train failed:\n{ended.stdout}\n{ended.stderr}")
        (history,) = Path(folder).rglob("history.parquet")
        seconds = pq.read_table(history, columns=["seconds"])["seconds"].to_pylist()
    return 1000 * float(statistics.median(seconds[WARM_UP:]))
