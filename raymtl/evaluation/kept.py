"""Which step's model a training keeps, and at which step it ends, read from its records."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raymtl.config.sections import Train
from raymtl.storage.notes import Note

BEST_STEP = "best_step"
"""A column of the history and of what a trial reports: the step with the best score so far."""


def is_last(train: Train, step: int, best_step: float | None) -> bool:
    """Whether a training ends after `step` steps, with the best score at `best_step`.

    It ends at `train.steps`, or when no score for `train.patience` of them was better.
    """
    if step >= train.steps:
        return True
    if train.patience is None or best_step is None:
        return False
    return step - best_step >= train.patience * train.eval_every


def has_ended(train: Train, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these records, in order, are of a training that came to its end."""
    return bool(rows) and is_last(train, rows[-1]["step"], rows[-1].get(BEST_STEP))


def kept_row(train: Train, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The record of the step whose model is kept, of the records of an ended training in order."""
    if train.keep == "best":
        best_step = rows[-1].get(BEST_STEP)
        for row in rows:
            if row["step"] == best_step:
                return row
    return rows[-1]


def kept_notes(train: Train, rows: Sequence[Mapping[str, Any]]) -> Iterable[Note]:
    """Notes on a model that is not of the last step, and on a training that ended early."""
    if not rows:
        return
    kept, last = kept_row(train, rows), rows[-1]
    if kept is not last:
        text = (
            f"the model of step {kept['step']} is kept, with a {train.metric} of "
            f"{kept[train.metric]:.4g}; after the last step, {last['step']}, it was "
            f"{_shown(last.get(train.metric))}"
        )
        yield Note(place="training", text=text, key="train.keep")
    if last["step"] < train.steps and has_ended(train, rows):
        text = (
            f"ended after step {last['step']} of {train.steps}, since {train.metric} was not "
            f"better in the last {train.patience} scores than at step {last[BEST_STEP]}"
        )
        yield Note(place="training", text=text, key="train.patience")


def _shown(score: float | None) -> str:
    if score is None:
        return "undefined"
    return f"{score:.4g}"
