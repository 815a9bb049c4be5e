"""Everything that a run needs to go on exactly where it was: parameters, optimiser, weighting
state, RNG, step.

A checkpoint is a folder `step_00000100` of files and a manifest with their checksums, which is
written last. A folder without a manifest that is true of it is no checkpoint: the one before is
taken, and it is said.
"""

import errno
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raymtl.data.draws import GENERATOR
from raymtl.step.algorithm import Algorithm
from raymtl.storage import atomic, formats
from raymtl.storage.fence import Attempt
from raymtl.training import manifest
from raymtl.training.best import Best
from raymtl.training.outer_step import optimizer_state, restore_optimizer
from raymtl.types import UserError

FOLDER = "checkpoints"
BEST_MODEL = "best.safetensors"
"""In a checkpoint: the model with the best score so far, unless it is the checkpoint's own."""
NUM_SAVED = 2
"""How many checkpoints stay: where the newest is damaged, the one before is read."""


class Progress(NamedTuple):
    """Where a training stands. `task_axis` and `graph` are saved so that a resumed run computes in
    the same way.

    `anchor` is what the model was at the step that the mode draws it to, empty where the mode does
    not. `rows` are the records of steps that are not in history.parquet yet.
    """

    step: int
    params: dict[str, Tensor]
    task_axis: str
    anchor: dict[str, Tensor] = {}
    rows: Sequence[dict[str, Any]] = ()
    graph: str = "none"
    best: Best | None = None
    """The best model so far, where the training tracks it."""
    average: Mapping[str, Tensor] = {}
    """The moving average of the parameters, where there is one."""

    @property
    def kept(self) -> Mapping[str, Tensor]:
        """The parameters to keep if the training ended here."""
        if self.best is not None and self.best.params:
            return self.best.params
        return self.average or self.params


class Snapshot(NamedTuple):
    """Copies of what a step changes before it moves the parameters."""

    weighting: dict[str, Tensor]
    rng: Tensor


def snapshot(algorithm: Algorithm) -> Snapshot:
    """Between two steps, what `save` needs of this one."""
    return Snapshot(algorithm.weighting.state(), torch.get_rng_state())


class Saved(NamedTuple):
    """What was read of a checkpoint."""

    folder: Path
    params: dict[str, Tensor]
    state: dict[str, Any]
    best_params: Mapping[str, Tensor] = {}
    """Those of `BEST_MODEL`."""


class Choice(NamedTuple):
    """The newest checkpoint that is whole, if there is one, and why each that looks newer, by its
    name, is none.
    """

    folder: Path | None
    passed_over: dict[str, str]


def save(
    attempt: Attempt,
    snapshot: Snapshot,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    passed_over: Collection[str] = (),
) -> Path:
    """Publishes `checkpoints/step_N` of a model folder, its manifest written last.

    `NUM_SAVED` of them stay; older ones are removed, and those that this attempt has `passed_over`,
    by name. Raises Superseded, with nothing written or removed, where another attempt took the
    place of this one.
    """
    root = attempt.folder / FOLDER
    folder = root / f"step_{progress.step:08d}"

    def write(aside: Path) -> None:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        _write(aside, snapshot, optimizer, progress)
        if folder.exists() and manifest.damage(folder) is not None:
            attempt.remove(folder)

    try:
        attempt.publish(folder, write)
    except OSError as error:
        if (
            error.errno not in (errno.ENOTEMPTY, errno.EEXIST)
            or manifest.damage(folder) is not None
        ):
            raise  # else another worker has written the same step meanwhile
    older = sorted(other for other in root.glob("step_*") if other.name <= folder.name)[:-NUM_SAVED]
    for old in {*older, *(root / name for name in passed_over)} - {folder}:
        attempt.remove(old)
    return folder


def _write(
    folder: Path, snapshot: Snapshot, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    _save_params(folder / "model.safetensors", progress.params)
    best = progress.best
    about_best = None
    if best is not None:
        about_best = {"step": best.step, "score": best.score, "is_kept": bool(best.params)}
        if best.params and (best.step != progress.step or progress.average):
            _save_params(folder / BEST_MODEL, best.params)
    state = {
        "step": progress.step,
        "task_axis": progress.task_axis,
        "graph": progress.graph,
        "optimizer": optimizer_state(optimizer, progress.params),
        "weighting": snapshot.weighting,
        "anchor": progress.anchor,
        "best": about_best,
        "average": {name: value.clone() for name, value in progress.average.items()},
        "rng": snapshot.rng,
        "rows": list(progress.rows),
        "generator": GENERATOR,
    }
    with (folder / "state.pt").open(
        "wb"
    ) as file:  # given the path, torch would not tell that the disk is full
        torch.save(state, file)
    manifest.write(folder, progress.step)


def _save_params(path: Path, params: Mapping[str, Tensor]) -> None:
    # `storage.publish` would make the parents of what it publishes, and with them an attempt's
    # folder that is gone.
    formats.save_params(path, params, lambda aside, write: write(aside))


def is_saved(root: Path, step: int) -> bool:
    """Whether the folder of checkpoints has one of this step that is not damaged."""
    return manifest.damage(root / f"step_{step:08d}") is None


def choose(folder: Path) -> Choice:
    """What to go on from in a model folder."""
    passed_over: dict[str, str] = {}
    for candidate in sorted((folder / FOLDER).glob("step_*"), reverse=True):
        damage = manifest.damage(candidate)
        if damage is None:
            return Choice(candidate, passed_over)
        passed_over[candidate.name] = f"{candidate}: {damage}, so this checkpoint is passed over."
    return Choice(None, passed_over)


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint in a model folder, 0 where there is none."""
    checkpoint = choose(folder).folder
    if checkpoint:
        return step_of(checkpoint)
    return 0


def step_of(folder: Path) -> int:
    """By its name."""
    return int(folder.name.removeprefix("step_"))


def read(folder: Path) -> Saved | None:
    """What is in a checkpoint; None where it is gone, or not what its manifest says any more.

    Raises UserError for one whose manifest is true of it, but which cannot be read.
    """
    try:
        params = formats.load_params(folder / "model.safetensors")
        best_params: Mapping[str, Tensor] = {}
        if (folder / BEST_MODEL).exists():
            best_params = formats.load_params(folder / BEST_MODEL)
        return Saved(folder, params, _state(folder), best_params)
    except UserError:
        if manifest.damage(folder) is None:
            raise
        return None


def restore(
    saved: Saved, algorithm: Algorithm, params: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> Progress:
    """Puts a checkpoint into parameters, optimiser, weighting and generator; returns where it
    stands.

    Raises UserError for a checkpoint that is damaged or of another configuration.
    """
    values = formats.as_expected(saved.folder / "model.safetensors", saved.params, params)
    state = saved.state
    try:
        restore_optimizer(optimizer, params, state["optimizer"])
        algorithm.weighting.restore(state["weighting"])
        torch.set_rng_state(state["rng"])
        progress = Progress(
            int(state["step"]),
            params,
            str(state["task_axis"]),
            state["anchor"],
            state["rows"],
            str(state.get("graph", "none")),  # an earlier version had no graphs
            _best(saved, values),
            state.get("average", {}),
        )
        for name, value in progress.anchor.items():
            progress.anchor[name] = value.to(params[name].device)
    except Exception as error:  # what is in it may be anything
        raise _damaged(saved.folder, error) from None
    with torch.no_grad():
        for name, value in params.items():
            value.copy_(values[name])
    return progress


def _best(saved: Saved, params: Mapping[str, Tensor]) -> Best | None:
    """The best model so far, of which an earlier version knew nothing."""
    about = saved.state.get("best")
    if about is None:
        return None
    best = Best(int(about["step"]), float(about["score"]), saved.best_params)
    if about["is_kept"] and not best.params:
        return best._replace(params=params)
    return best


def steps_done(saved: Saved) -> tuple[int, list[dict[str, Any]]]:
    """The step that a checkpoint stands at, and its `rows`. Raises UserError for one that is
    damaged.
    """
    try:
        return int(saved.state["step"]), list(saved.state["rows"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(saved.folder, error) from None


def _state(folder: Path) -> dict[str, Any]:
    try:
        path = folder / "state.pt"
        state: dict[str, Any] = atomic.patiently(
            path, lambda: torch.load(path, weights_only=True, map_location="cpu")
        )
        return state
    except Exception as error:  # torch.load raises half a dozen kinds for a damaged file
        raise _damaged(folder, error) from None


def _damaged(folder: Path, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0]
    return UserError(
        f"{folder / 'state.pt'}: expected a checkpoint, got a damaged file ({reason}). "
        "Remove the checkpoint folder to start this training again."
    )
