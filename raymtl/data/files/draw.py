"""Episodes from rows: at random, of a group, or of some classes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from raymtl.data.base import Arrays, Split, drawn
from raymtl.types import Batch, Episode

if TYPE_CHECKING:
    from raymtl.data.files.source import Files


def draw(source: "Files", arrays: Arrays, split: Split, rng: np.random.Generator) -> tuple[Episode, str]:
    """One episode, and the name of its domain.

    Where a group or a split has fewer rows than are asked for, the query set gets fewer, then the support set.
    """
    shots = drawn(source.shots, rng)
    if source.episodes == "classes":
        return _of_classes(source, arrays, split, shots, rng)
    rows, starts = arrays[f"rows/{split}"], arrays.get(f"starts/{split}")
    domain = "rows"
    if source.episodes == "groups" and starts is not None:
        group = int(rng.integers(len(starts) - 1))
        rows = rows[starts[group] : starts[group + 1]]
        domain = f"{source.group} {arrays[f'names/{split}'][group]}"
    elif len(source.task_names) == 1:  # all of them labelled, so that a single task has as many labels as are drawn
        rows = arrays[f"rows/{split}/{source.task_names[0]}"]
    taken = rows[rng.choice(len(rows), min(len(rows), shots + source.queries), replace=False)]
    shots = min(shots, len(taken) - 1)
    return Episode(_batch(source, arrays, taken[:shots]), _batch(source, arrays, taken[shots:])), domain


def _of_classes(
    source: "Files", arrays: Arrays, split: Split, shots: int, rng: np.random.Generator
) -> tuple[Episode, str]:
    rows, starts, names = (arrays[f"{key}/{split}"] for key in ("rows", "starts", "names"))
    classes = rng.choice(len(names), drawn(source.ways, rng), replace=False)
    taken = np.stack(
        [rng.choice(rows[starts[c] : starts[c + 1]], shots + source.queries, replace=False) for c in classes]
    )
    (task,) = source.task_names
    support, query = (
        Batch(
            torch.from_numpy(arrays["inputs"][part.ravel()]),
            {task: torch.arange(len(classes)).repeat_interleave(part.shape[1])},
            {},
        )
        for part in (taken[:, :shots], taken[:, shots:])
    )
    return Episode(support, query), ", ".join(names[classes].tolist())


def _batch(source: "Files", arrays: Arrays, rows: np.ndarray) -> Batch:
    """The rows with these numbers; those of a stream, that of its window."""
    found = {name: torch.from_numpy(values) for name, values in _gathered(source, arrays, rows).items()}
    names = source.task_names
    masks = {name: found[f"mask/{name}"] for name in names}
    complete = "complete" in arrays
    return Batch(found["inputs"], {name: found[f"target/{name}"] for name in names}, {} if complete else masks)


def _gathered(source: "Files", arrays: Arrays, rows: np.ndarray) -> Mapping[str, np.ndarray]:
    keys = ["inputs", *(f"{key}/{name}" for key in ("target", "mask") for name in source.task_names)]
    offsets = arrays.get("offsets")
    if offsets is None:
        return {key: arrays[key][rows] for key in keys}
    # A window: rows are counted through the blocks in it, in the order of their places.
    place = np.searchsorted(offsets, rows, side="right") - 1
    found = {}
    for key in keys:
        first = arrays[f"0/{key}"]
        out = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for number in np.unique(place):
            here = place == number
            out[here] = arrays[f"{number}/{key}"][rows[here] - offsets[number]]
        found[key] = out
    return found
