"""What a training keeps, so that nothing is lost: the record of every step, and checkpoints as
often as is cheap.
"""

import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from raymtl.config import Experiment
from raymtl.reporting.tensorboard import Events
from raymtl.step.algorithm import Algorithm
from raymtl.step.workers import Workers
from raymtl.storage import atomic, fence, formats
from raymtl.storage.fence import Attempt, Superseded
from raymtl.training import checkpoint
from raymtl.training.checkpoint import Progress, Saved, Snapshot, snapshot
from raymtl.training.heartbeat import Heartbeat
from raymtl.types import UserError

HALVED = "halved.json"
"""In a model folder: the memory did not suffice for all of a worker's episodes at a time."""
SEEN_S = 60.0
"""How long one machine may see later than another what is on their storage."""
ASK_S = 1.0
"""How often a host is asked whether a machine of it is leaving, seconds."""
TURN_S, LONGEST_TURN_S = 0.02, 0.5
"""A worker leaves it for so long to each of those before it to write what is to be kept of a lost
one, and at most.
"""


class TrainContext(NamedTuple):
    """What differs between a notebook, a Tune trial and a Train worker."""

    report: Callable[[dict[str, float]], None]
    """Takes the scores of a step, after its checkpoint was written."""
    observe: Callable[[Mapping[str, float | None]], None]
    """Takes the numbers of every step, on the first worker; the loss of a task without labels is
    None.
    """
    workers: Workers = Workers()
    device: torch.device = torch.device("cpu")
    leaving: Callable[[], bool] = lambda: False
    """Whether a worker's machine or process is about to be taken away; asked on all workers at the
    same steps.
    """
    kept: Callable[[], None] = lambda: None
    """Told where `leaving` was true, after the checkpoint that the first worker keeps for that."""
    rescued_by: Callable[[Callable[[], bool]], None] = lambda rescue: None
    """Given `CheckpointManager.rescue`, for whoever can call it while the training waits for a worker that is
    lost.
    """


class Recorder:
    """The record of every step. The first worker writes it: history.parquet, TensorBoard, the
    host's own metrics; the others hold what the file lacks, should one of them have to keep what
    the first cannot any more.
    """

    def __init__(
        self,
        attempt: Attempt,
        first_step: int,
        unwritten: Sequence[dict[str, Any]],
        context: TrainContext,
    ) -> None:
        self.attempt, self.context = attempt, context
        self.heartbeat = Heartbeat(attempt, context.workers, first_step)
        self.path = attempt.folder / "history.parquet"
        self.rows = list(unwritten)
        self.written = 0
        self.events: Events | None = None
        if context.workers.rank == 0:
            self.rows = [row for row in formats.read_rows(self.path) if row["step"] <= first_step]
            self.written = len(self.rows)
            if self.rows:
                last = self.rows[-1]["step"]
            else:
                last = 0
            self.rows += [row for row in unwritten if row["step"] > last]
            self.events = Events(attempt.folder / "tensorboard", first_step)

    @property
    def seconds(self) -> float:
        """Training time so far, over all attempts, on the first worker."""
        return float(sum(row["seconds"] for row in self.rows))

    def add(self, row: dict[str, Any]) -> None:
        """Takes the record of a step. Raises Superseded."""
        self.attempt.check_now_and_then()
        self.heartbeat.made(row["step"])
        self.rows.append(row)
        if self.events is None:
            return
        self.events.add(row)
        self.context.observe(row)

    @property
    def unwritten(self) -> list[dict[str, Any]]:
        """The rows that the file lacks."""
        return self.rows[self.written :]

    def flush(self) -> None:
        """Writes the file. Raises Superseded."""
        if self.events is None:
            self.rows = []
            return
        formats.write_rows(self.path, self.rows, self.attempt.publish)
        self.written = len(self.rows)
        self.events.flush()


class _Whole(NamedTuple):
    """All that a checkpoint is made of, as long as the parameters have not moved on."""

    snapshot: Snapshot
    optimizer: torch.optim.Optimizer
    progress: Progress


class CheckpointManager:
    """Keeps what would be lost. The first worker writes a checkpoint with every score and, between
    them, as often as costs no more than `train.checkpoint_share` of the time; and one at once where
    its machine is to be taken away.

    Of several workers, all hold the same. Where one is lost, another writes what all had after the
    last step that they made together, so that no more than the one at which it was lost is made
    again.
    """

    def __init__(
        self, experiment: Experiment, begin: "Begin", context: TrainContext, recorder: Recorder
    ) -> None:
        self.experiment, self.context, self.recorder = experiment, context, recorder
        self.attempt, self.passed_over = begin.attempt, begin.passed_over
        self.folder = begin.attempt.folder
        self.short_of_memory = (self.folder / HALVED).exists()
        self.seconds = 0.0  # that the last one took
        self.at = -math.inf
        self.whole: _Whole | None = None
        self.ending = False
        self.turn = threading.Lock()
        """Held by the thread that writes a checkpoint, or is about to change what one would be made
        of.
        """

    def keep(
        self,
        algorithm: Algorithm,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        with_scores: bool,
        soon: bool,
        ask: bool,
    ) -> bool:
        """Writes a checkpoint, if it is time to; at the last step the model before it, for then
        nothing is left.

        `soon`: whether the next step is scored. `ask`: whether all workers ask now if a machine of
        theirs is about to be taken away; returns the answer.
        """
        if with_scores:
            # before the checkpoint: what is recorded too much is cut off on resume
            self.recorder.flush()
        workers = self.context.workers
        if workers.size > 1:  # held before anything that may wait for a worker that is lost
            self.whole = _Whole(snapshot(algorithm), optimizer, progress)
        leaving = ask and self.context.leaving()
        # A worker that is lost while they score leaves no whole step behind, so the one before is
        # kept.
        now = with_scores or leaving or (soon and workers.size > 1)
        if workers.rank == 0 and (now or self._due()):
            start = time.perf_counter()
            with self.turn:
                if progress.step == self.experiment.train.steps:
                    config_of = self.experiment.model_copy(update={"search": {}})
                    publish = self.attempt.publish
                    publish(self.folder / "config.yaml", config_of.save)
                    formats.save_params(self.folder / "model.safetensors", progress.params, publish)
                self._write(self.whole or _Whole(snapshot(algorithm), optimizer, progress))
            self.at = time.perf_counter()
            self.seconds = self.at - start
        return leaving

    def moving(self) -> None:
        """The parameters are about to move: from here to the next `keep` they are those of no whole
        step.
        """
        with self.turn:
            self.whole = None
            if not self.ending:
                return
        threading.Event().wait()  # what was there is written, and this process is about to be ended

    def rescue(self) -> bool:
        """Writes what all workers had after their last whole step, unless another did: one of them
        is lost.

        Any thread may call it; the training then makes no other step. False where a step is just
        being made. Where another attempt took the place of this one, there is nothing to write.
        """
        with self.turn:
            if self.whole is None:
                return False
            self.ending = True
            if not checkpoint.is_kept(self.folder / checkpoint.FOLDER, self.whole.progress.step):
                with suppress(Superseded):
                    self._write(self.whole)
            return True

    def rescue_in_turn(self) -> None:
        """The same of the thread that trains, once it has learned of the loss; those before it go
        first.
        """
        time.sleep(min(self.context.workers.rank * TURN_S, LONGEST_TURN_S))
        self.rescue()

    def _write(self, whole: _Whole) -> None:
        progress = whole.progress._replace(rows=self.recorder.unwritten)
        checkpoint.save(self.attempt, whole.snapshot, whole.optimizer, progress, self.passed_over)
        self.passed_over = ()

    def _due(self) -> bool:
        share = self.experiment.train.checkpoint_share
        return share > 0 and (time.perf_counter() - self.at) * share >= self.seconds

    def out_of_memory(self, error: torch.OutOfMemoryError, step: int) -> NoReturn:
        """Has the next attempt take half of the episodes at a time, and raises; says to lower them
        where it did.
        """
        if self.short_of_memory:
            raise UserError(
                f"train.meta_batch: at step {step} the memory did not suffice, though half of a "
                "worker's episodes were run at a time. Lower it, or take learner.gradient: "
                "checkpointed."
            ) from None
        about = {"step": step, "reason": str(error).partition("\n")[0]}
        formats.write_json(self.folder / HALVED, about, self.attempt.publish)
        raise error


class Begin(NamedTuple):
    """What an attempt at a training begins from."""

    attempt: Attempt
    saved: Saved | None
    passed_over: tuple[str, ...]
    """Names of what looked like newer checkpoints, on the first worker."""


def begin(folder: Path, context: TrainContext) -> Begin:
    """A new attempt at the training of a model folder, and the newest checkpoint that the first
    worker finds whole.

    All workers agree on both. What is found is put on record. One that is gone before all have read
    it is chosen anew. Raises UserError where a worker does not see what the first one sees.
    """
    workers = context.workers
    attempt = _agreed_attempt(folder, context)
    while True:
        if workers.rank == 0:
            chosen = _chosen(attempt)
        else:
            chosen = checkpoint.Choice(None, {})
        step = _from_the_first(checkpoint.step_of(chosen.folder) if chosen.folder else 0, context)
        path = folder / checkpoint.FOLDER / f"step_{step:08d}"
        if step:
            saved = _read_when_seen(path, context)
        else:
            saved = None
        if not step or _sum(saved is not None, context) == workers.size:
            break
        if _from_the_first(checkpoint.is_kept(path.parent, step), context):
            raise UserError(
                f"{path}: expected the checkpoint that the first worker sees on every machine, got "
                f"none on one of them ({socket.gethostname()} tells it). `output` must be on "
                "storage that all machines see."
            )
    if chosen.folder or chosen.passed_over:
        told = list(chosen.passed_over.values())
        about = {"from": chosen.folder.name if chosen.folder else None, "passed_over": told}
        formats.append_row(folder / "resumes.jsonl", about, attempt.publish)
        for sentence in told:
            print(sentence, file=sys.stderr)
    return Begin(attempt, saved, tuple(chosen.passed_over))


def _agreed_attempt(folder: Path, context: TrainContext) -> Attempt:
    """Made by the first worker; the others wait for its folder when they first write."""
    if context.workers.rank == 0:
        made = fence.claim(folder)
    else:
        made = None
    number = _from_the_first(made.number if made else 0, context)
    return made or Attempt(folder, number)


def _chosen(attempt: Attempt) -> checkpoint.Choice:
    """What there is to go on from, looked up while the storage is there."""

    def act() -> checkpoint.Choice:
        chosen = checkpoint.choose(attempt.folder)
        attempt.check()
        return chosen

    return atomic.patiently(attempt.folder, act, there=True)


def _sum(value: int, context: TrainContext) -> int:
    return int(context.workers.sum(torch.tensor(value, dtype=torch.int64, device=context.device)))


def _from_the_first(value: int, context: TrainContext) -> int:
    """What the first worker gives, on all workers."""
    return _sum(int(value) if context.workers.rank == 0 else 0, context)


def _read_when_seen(path: Path, context: TrainContext) -> Saved | None:
    """A checkpoint that the first worker has chosen; None where it is gone, or not seen here in
    time.
    """
    until = time.monotonic() + SEEN_S
    while (
        context.workers.rank > 0
        and not (path / checkpoint.MANIFEST).exists()
        and time.monotonic() < until
    ):
        time.sleep(0.5)
    return checkpoint.read(path)
