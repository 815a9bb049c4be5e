"""Everything that a run needs to go on exactly where it was: parameters, optimiser, weighting state, RNG, step."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raymtl import runs
from raymtl.step import Problem
from raymtl.types import UserError


class Progress(NamedTuple):
    """Where a training stands. `task_axis` is kept so that a resumed run computes in the same way.

    `anchor` is what the model was at the step that the mode draws it to, empty where the mode does not.
    """

    step: int
    params: dict[str, Tensor]
    task_axis: str
    anchor: dict[str, Tensor] = {}


def save(folder: Path, problem: Problem, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Writes a checkpoint folder aside and renames it into place, over an older one."""

    def write(aside: Path) -> None:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        runs.save_params(aside / "model.safetensors", progress.params)
        state = {
            "step": progress.step,
            "task_axis": progress.task_axis,
            "optimizer": optimizer.state_dict(),
            "weighting": problem.weighting.state(),
            "anchor": progress.anchor,
            "rng": torch.get_rng_state(),
        }
        torch.save(state, aside / "state.pt")
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)

    runs.publish(folder, write)
    shutil.rmtree(folder.with_name(f".{folder.name}.old"), ignore_errors=True)


def restore(folder: Path, problem: Problem, params: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> Progress:
    """Puts a checkpoint into parameters, optimiser, weighting and generator; returns where it stands.

    Raises UserError for a checkpoint that is damaged or of another configuration.
    """
    saved = runs.load_params(folder / "model.safetensors", params)
    state = _state(folder)
    try:
        optimizer.load_state_dict(state["optimizer"])
        problem.weighting.restore(state["weighting"])
        torch.set_rng_state(state["rng"])
        progress = Progress(int(state["step"]), params, str(state["task_axis"]), state["anchor"])
        for name, value in progress.anchor.items():
            progress.anchor[name] = value.to(params[name].device)
    except Exception as error:  # what is in it may be anything
        raise _damaged(folder, error) from None
    with torch.no_grad():
        for name, value in params.items():
            value.copy_(saved[name])
    return progress


def steps_done(folder: Path) -> int:
    """The step that a checkpoint stands at. Raises UserError for one that is damaged."""
    try:
        return int(_state(folder)["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from None


def _state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
        return state
    except Exception as error:  # torch.load raises half a dozen kinds for a damaged file
        raise _damaged(folder, error) from None


def _damaged(folder: Path, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0]
    return UserError(
        f"{folder / 'state.pt'}: expected a checkpoint, got a damaged file ({reason}). "
        "Remove the checkpoint folder to start this training again."
    )
