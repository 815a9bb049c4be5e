"""Short trainings, run to their end or interrupted, and what they report."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from raymtl.config import Experiment
from raymtl.training import checkpoint
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop


class Stopped(Exception):
    """Thrown into a training to interrupt it."""


def run(
    chosen: Experiment,
    arrays: Mapping[str, np.ndarray],
    folder: Path,
    *,
    stop_at: int | None = None,
    die_after: int | None = None,
    leaving: Callable[[], bool] = lambda: False,
    scored: Callable[[int], None] = lambda step: None,
) -> list[dict[str, float]]:
    """Trains in a folder, made if there is none; returns what was reported with each score.

    Raises Stopped after the score of step `stop_at`, whose checkpoint is written by then, or right
    after the record of step `die_after`, wherever the last checkpoint is. `scored` is called with
    the step of each score.
    """
    reports: list[dict[str, float]] = []

    def report(metrics: dict[str, float]) -> None:
        reports.append(metrics)
        step = int(metrics["step"])
        assert checkpoint.newest_step(folder) == step
        scored(step)
        if step == stop_at:
            raise Stopped

    def observe(row: Mapping[str, float | None]) -> None:
        if row["step"] == die_after:
            raise Stopped

    folder.mkdir(exist_ok=True)
    context = TrainContext(report, observe, is_preempted=leaving)
    train_loop(chosen, arrays, local_batches(chosen, arrays), context, folder)
    return reports
