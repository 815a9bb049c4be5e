"""Writes checkpoints as often as is cheap, so that little is lost whenever a training ends."""

import math
import time
from typing import NamedTuple, NoReturn

import torch

from raymtl.config import Experiment
from raymtl.step.algorithm import Algorithm
from raymtl.storage import formats
from raymtl.training import checkpoint
from raymtl.training.checkpoint import Progress, snapshot
from raymtl.training.context import TrainContext
from raymtl.training.emergency import EmergencyCheckpoint, StepSnapshot
from raymtl.training.recorder import Recorder
from raymtl.training.resume import StartingPoint
from raymtl.types import UserError

HALVED = "halved.json"
"""In a model folder: the memory did not suffice for all of a worker's episodes at a time."""


class StepFlags(NamedTuple):
    """What decides whether a step gets a checkpoint, apart from the time."""

    is_scored: bool
    next_is_scored: bool
    is_last: bool
    """Whether the training ends after this step."""
    ask_preempted: bool
    """Whether all workers ask after this step if one of them is about to be taken away."""


class CheckpointManager:
    """Decides when a checkpoint is written, and writes it on the first worker.

    There is one with every score. Between scores there are as many as cost no more than
    `train.checkpoint_share` of the time, and one at once where a machine is about to be taken away.
    What the workers do when one of them is lost stands in `training.emergency`.
    """

    def __init__(
        self,
        experiment: Experiment,
        start: StartingPoint,
        context: TrainContext,
        recorder: Recorder,
    ) -> None:
        self.experiment, self.context, self.recorder = experiment, context, recorder
        self.attempt, self.passed_over = start.attempt, start.passed_over
        self.folder = start.attempt.folder
        self.short_of_memory = (self.folder / HALVED).exists()
        self.last_duration_s = 0.0
        self.last_end = -math.inf
        self.emergency = EmergencyCheckpoint(self.folder / checkpoint.FOLDER, self._write)

    def after_step(
        self,
        algorithm: Algorithm,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        flags: StepFlags,
    ) -> bool:
        """Writes a checkpoint if it is time to, and after the last step the kept model before it.

        Returns whether the workers learned that one of them is about to be taken away.
        """
        if flags.is_scored:
            # Before the checkpoint: rows of steps that it does not have are cut off on resume.
            self.recorder.flush()
        step: StepSnapshot | None = None
        workers = self.context.workers
        if workers.size > 1:
            # Before anything that may wait for a lost worker.
            step = StepSnapshot(snapshot(algorithm), optimizer, progress)
            self.emergency.take(step)
        preempted = flags.ask_preempted and self.context.is_preempted()
        # A worker that is lost while all score leaves no snapshot, so the step before is saved.
        needed = flags.is_scored or preempted or (flags.next_is_scored and workers.size > 1)
        if workers.rank == 0 and (needed or self._is_due()):
            start = time.perf_counter()
            with self.emergency.lock:
                if flags.is_last:
                    self._write_model(algorithm, progress)
                self._write(step or StepSnapshot(snapshot(algorithm), optimizer, progress))
            self.last_end = time.perf_counter()
            self.last_duration_s = self.last_end - start
        return preempted

    def _write_model(self, algorithm: Algorithm, progress: Progress) -> None:
        config = self.experiment.model_copy(update={"search": {}})
        publish = self.attempt.publish
        publish(self.folder / "config.yaml", config.save)
        values = {**progress.kept, **algorithm.constants()}
        formats.save_params(self.folder / "model.safetensors", values, publish)

    def _write(self, step: StepSnapshot) -> None:
        progress = step.progress._replace(rows=self.recorder.unwritten)
        checkpoint.save(self.attempt, step.state, step.optimizer, progress, self.passed_over)
        self.passed_over = ()

    def _is_due(self) -> bool:
        share = self.experiment.train.checkpoint_share
        elapsed_s = time.perf_counter() - self.last_end
        return share > 0 and elapsed_s * share >= self.last_duration_s

    def out_of_memory(self, error: torch.OutOfMemoryError, step: int) -> NoReturn:
        """Raises the error, and has the next attempt run half of the episodes at a time.

        Where this attempt does so already, it raises a UserError that says what to lower.
        """
        if self.short_of_memory:
            key, advice = "train.meta_batch", "Lower it, or take learner.gradient: checkpointed"
            if self.experiment.train.batch_size is not None:
                key, advice = "train.batch_size", "Lower it, or set train.chunk"
            raise UserError(
                f"{key}: at step {step} the memory did not suffice, though half of a "
                f"worker's episodes were run at a time. {advice}."
            ) from None
        about = {"step": step, "reason": str(error).partition("\n")[0]}
        formats.write_json(self.folder / HALVED, about, self.attempt.publish)
        raise error
