"""Where an attempt at a training starts: at the newest checkpoint, on which all workers agree."""

import logging
import socket
import time
from pathlib import Path
from typing import NamedTuple

import torch

from raymtl.data.draws import GENERATOR
from raymtl.storage import atomic, fence, formats
from raymtl.storage.fence import Attempt
from raymtl.training import checkpoint, manifest
from raymtl.training.checkpoint import Saved
from raymtl.training.context import TrainContext
from raymtl.types import UserError

logger = logging.getLogger("raymtl")

SEEN_S = 60.0
"""How long one machine may see later than another what is on their storage."""


class StartingPoint(NamedTuple):
    """What an attempt at a training starts from."""

    attempt: Attempt
    saved: Saved | None
    passed_over: tuple[str, ...]
    """Names of what looked like newer checkpoints, on the first worker."""


def start_attempt(folder: Path, context: TrainContext) -> StartingPoint:
    """Claims a new attempt at the training of a model folder and reads its newest checkpoint.

    The first worker chooses the checkpoint, and all workers agree on it and on the attempt. A
    checkpoint that is gone before all have read it is replaced by another choice. The choice is
    appended to resumes.jsonl. Raises UserError where a worker does not see the chosen checkpoint.
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
        if _from_the_first(checkpoint.is_saved(path.parent, step), context):
            raise UserError(
                f"{path}: expected the checkpoint that the first worker sees on every machine, got "
                f"none on one of them ({socket.gethostname()} tells it). `output` must be on "
                "storage that all machines see."
            )
    _record(chosen, folder, attempt)
    if saved and workers.rank == 0 and saved.state.get("generator") != GENERATOR:
        logger.warning(
            "%s: it was begun by an earlier version, which drew episodes by another generator. "
            "From step %d on its episodes are drawn anew, as this version draws them; parameters "
            "and optimiser go on.",
            folder,
            step + 1,
        )
    return StartingPoint(attempt, saved, tuple(chosen.passed_over))


def _record(chosen: checkpoint.Choice, folder: Path, attempt: Attempt) -> None:
    """Writes what was chosen to resumes.jsonl, and warns of what was passed over."""
    if not chosen.folder and not chosen.passed_over:
        return
    damages = list(chosen.passed_over.values())
    name = None
    if chosen.folder:
        name = chosen.folder.name
    about = {"from": name, "passed_over": damages}
    formats.append_row(folder / "resumes.jsonl", about, attempt.publish)
    for sentence in damages:
        logger.warning("%s", sentence)


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

    return atomic.patiently(attempt.folder, act, must_exist=True)


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
        and not (path / manifest.NAME).exists()
        and time.monotonic() < until
    ):
        time.sleep(0.5)
    return checkpoint.read(path)
