"""What a training keeps, so that nothing is lost: the record of every step, and checkpoints as often as is cheap."""

import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from raymtl import checkpoint, runs, storage
from raymtl.checkpoint import Progress, Settled, settled
from raymtl.collective import Workers
from raymtl.config import Experiment
from raymtl.events import Events
from raymtl.step import Problem
from raymtl.types import UserError

HALVED = "halved.json"
"""In a model folder: the memory did not suffice for all of a worker's episodes at a time."""
SEEN_S = 60.0
"""How long one machine may see later than another what is on their storage."""
ASK_S = 1.0
"""How often a host is asked whether a machine of it is leaving, seconds."""
TURN_S, LONGEST_TURN_S = 0.02, 0.5
"""A worker leaves it for so long to each of those before it to write what is to be kept of a lost one, and at most."""


class Host(NamedTuple):
    """What differs between a notebook, a Tune trial and a Train worker."""

    report: Callable[[dict[str, float]], None]
    """Takes the scores of a step, after its checkpoint was written."""
    observe: Callable[[Mapping[str, float | None]], None]
    """Takes the numbers of every step, on the first worker; the loss of a task without labels is None."""
    workers: Workers = Workers()
    device: torch.device = torch.device("cpu")
    leaving: Callable[[], bool] = lambda: False
    """Whether a worker's machine or process is about to be taken away; asked on all workers at the same steps."""
    kept: Callable[[], None] = lambda: None
    """Told where `leaving` was true, after the checkpoint that the first worker keeps for that."""
    rescued_by: Callable[[Callable[[], bool]], None] = lambda rescue: None
    """Given `Keeper.rescue`, for whoever can call it while the training waits for a worker that is lost."""


class Recorder:
    """The record of every step. The first worker writes it: history.parquet, TensorBoard, the host's own metrics; the
    others hold what the file lacks, should one of them have to keep what the first cannot any more."""

    def __init__(self, folder: Path, first_step: int, unwritten: Sequence[dict[str, Any]], host: Host) -> None:
        self.path = folder / "history.parquet"
        self.host = host
        self.rows = list(unwritten)
        self.written = 0
        self.events: Events | None = None
        if host.workers.rank == 0:
            self.rows = [row for row in runs.read_rows(self.path) if row["step"] <= first_step]
            self.written = len(self.rows)
            last = self.rows[-1]["step"] if self.rows else 0
            self.rows += [row for row in unwritten if row["step"] > last]
            self.events = Events(folder / "tensorboard", first_step)

    @property
    def seconds(self) -> float:
        """Training time so far, over all attempts, on the first worker."""
        return sum(row["seconds"] for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.events is None:
            return
        self.events.add(row)
        self.host.observe(row)

    @property
    def unwritten(self) -> list[dict[str, Any]]:
        """The rows that the file lacks."""
        return self.rows[self.written :]

    def flush(self) -> None:
        if self.events is None:
            self.rows = []
            return
        runs.write_rows(self.path, self.rows)
        self.written = len(self.rows)
        self.events.flush()


class _Whole(NamedTuple):
    """All that a checkpoint is made of, as long as the parameters have not moved on."""

    settled: Settled
    optimizer: torch.optim.Optimizer
    progress: Progress


class Keeper:
    """Keeps what would be lost. The first worker writes a checkpoint with every score and, between them, as often as
    costs no more than `train.checkpoint_share` of the time; and one at once where its machine is to be taken away.

    Of several workers, all hold the same. Where one is lost, another writes what all had after the last step that they
    made together, so that no more than the one at which it was lost is made again.
    """

    def __init__(self, experiment: Experiment, folder: Path, host: Host, recorder: Recorder) -> None:
        self.experiment, self.folder, self.host, self.recorder = experiment, folder, host, recorder
        self.short_of_memory = (folder / HALVED).exists()
        self.seconds = 0.0  # that the last one took
        self.at = -math.inf
        self.whole: _Whole | None = None
        self.ending = False
        self.turn = threading.Lock()
        """Held by the thread that writes a checkpoint, or is about to change what one would be made of."""

    def keep(
        self,
        problem: Problem,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        with_scores: bool,
        soon: bool,
        ask: bool,
    ) -> bool:
        """Writes a checkpoint, if it is time to; at the last step the model before it, for then nothing is left.

        `soon`: whether the next step is scored. `ask`: whether all workers ask now if a machine of theirs is about to
        be taken away; returns the answer.
        """
        if with_scores:
            self.recorder.flush()  # before the checkpoint: what is recorded too much is cut off on resume
        workers = self.host.workers
        if workers.size > 1:  # held before anything that may wait for a worker that is lost
            self.whole = _Whole(settled(problem), optimizer, progress)
        leaving = ask and self.host.leaving()
        # A worker that is lost while they score leaves no whole step behind, so the one before is kept.
        now = with_scores or leaving or (soon and workers.size > 1)
        if workers.rank == 0 and (now or self._due()):
            start = time.perf_counter()
            with self.turn:
                if progress.step == self.experiment.train.steps:
                    config_of = self.experiment.model_copy(update={"search": {}})
                    storage.publish(self.folder / "config.yaml", config_of.save)
                    runs.save_params(self.folder / "model.safetensors", progress.params)
                self._write(self.whole or _Whole(settled(problem), optimizer, progress))
            self.at = time.perf_counter()
            self.seconds = self.at - start
        return leaving

    def moving(self) -> None:
        """The parameters are about to move: from here to the next `keep` they are those of no whole step."""
        with self.turn:
            self.whole = None
            if not self.ending:
                return
        threading.Event().wait()  # what was there is written, and this process is about to be ended

    def rescue(self) -> bool:
        """Writes what all workers had after their last whole step, unless another did: one of them is lost.

        Any thread may call it; the training then makes no other step. False where a step is just being made.
        """
        with self.turn:
            if self.whole is None:
                return False
            self.ending = True
            if not checkpoint.is_kept(self.folder / checkpoint.FOLDER, self.whole.progress.step):
                self._write(self.whole)
            return True

    def rescue_in_turn(self) -> None:
        """The same of the thread that trains, once it has learned of the loss; those before it go first."""
        time.sleep(min(self.host.workers.rank * TURN_S, LONGEST_TURN_S))
        self.rescue()

    def _write(self, whole: _Whole) -> None:
        progress = whole.progress._replace(rows=self.recorder.unwritten)
        checkpoint.save(self.folder / checkpoint.FOLDER, whole.settled, whole.optimizer, progress)

    def _due(self) -> bool:
        share = self.experiment.train.checkpoint_share
        return share > 0 and (time.perf_counter() - self.at) * share >= self.seconds

    def out_of_memory(self, error: torch.OutOfMemoryError, step: int) -> NoReturn:
        """Has the next attempt take half of the episodes at a time, and raises; says to lower them where it did."""
        if self.short_of_memory:
            raise UserError(
                f"train.meta_batch: at step {step} the memory did not suffice, though half of a worker's episodes were "
                "run at a time. Lower it, or take learner.gradient: checkpointed."
            ) from None
        runs.write_json(self.folder / HALVED, {"step": step, "reason": str(error).partition("\n")[0]})
        raise error


def agreed_checkpoint(folder: Path, host: Host) -> Path | None:
    """The newest checkpoint that the first worker finds whole, on all workers; what it finds is put on record."""
    told: list[str] = []
    root = folder / checkpoint.FOLDER
    found = checkpoint.newest(root, told.append) if host.workers.rank == 0 else None
    if found or told:
        runs.append_row(folder / "resumes.jsonl", {"from": found.name if found else None, "passed_over": told})
        for sentence in told:
            print(sentence, file=sys.stderr)
    step = torch.tensor(checkpoint.step_of(found) if found else 0, device=host.device)
    agreed = int(host.workers.sum(step))
    if not agreed:
        return None
    path = root / f"step_{agreed:08d}"
    until = time.monotonic() + SEEN_S
    while not (path / checkpoint.MANIFEST).exists():
        if time.monotonic() >= until:
            raise UserError(
                f"{path}: expected the checkpoint that the first worker sees here, got none on {socket.gethostname()}. "
                "`output` must be on storage that all machines see."
            )
        time.sleep(0.5)
    return path
