"""Examples of rows: episodes at random, of a group, or of some classes; and every row of a split
once.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from raymtl.data.base import Arrays, HeldOut, Members, Population, Split, drawn
from raymtl.data.tables.settings import FilesConfig
from raymtl.types import Batch, Episode


class Chosen(NamedTuple):
    """The rows of an episode, [N] each; `classes` are those of the query rows where an episode is
    some classes.
    """

    support: np.ndarray
    query: np.ndarray
    domain: str
    classes: np.ndarray | None = None


def draw(
    source: FilesConfig, arrays: Arrays, split: Split, rng: np.random.Generator
) -> tuple[Episode, str]:
    """One episode, and the name of its domain.

    Where a group or a split has fewer rows than are asked for, the query set gets fewer, then the
    support set.
    """
    chosen = _choose(source, arrays, split, rng)
    if chosen.classes is None:
        batches = [_batch(source, arrays, rows) for rows in (chosen.support, chosen.query)]
    else:
        batches = [
            _few_shot_batch(source, arrays, rows, len(chosen.classes)) for rows in chosen[:2]
        ]
    return Episode(*batches), chosen.domain


def query_rows(
    source: FilesConfig, arrays: Arrays, split: Split, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The query rows of an episode, and the names of its classes where it is of some."""
    chosen = _choose(source, arrays, split, rng)
    if chosen.classes is None:
        classes = ()
    else:
        classes = tuple(arrays[f"names/{split}"][chosen.classes].tolist())
    return chosen.query, classes


def query_members(
    source: FilesConfig, arrays: Arrays, split: Split, rng: np.random.Generator
) -> Mapping[str, Members]:
    """Whose the query rows of an episode are: of the group, of the classes, or each its own."""
    chosen = _choose(source, arrays, split, rng)
    if chosen.classes is None:
        members = members_of(source, arrays, split, chosen.query)
    else:
        members = {_class_population(source): np.tile(chosen.classes, (len(chosen.query), 1))}
    return dict.fromkeys(source.task_names, members)


def populations(source: FilesConfig, arrays: Arrays, split: Split) -> tuple[Population, ...]:
    """What the rows of a split were sampled from."""
    if source.episodes == "classes":
        return (Population(_class_population(source), len(arrays[f"names/{split}"]), whole=True),)
    if source.episodes == "groups":
        return (Population(source.group or "group", len(arrays[f"names/{split}"]), whole=True),)
    rows = arrays[f"rows/{split}"]
    if source.group is None:
        return (Population("row", len(rows)),)
    return (Population(source.group, len(np.unique(arrays["group"][rows]))),)


def every_example(source: FilesConfig, arrays: Arrays, split: Split) -> tuple[HeldOut, ...]:
    """All labelled rows of a split; none where classes are numbered anew in every episode."""
    if source.episodes == "classes":
        return ()
    rows = np.sort(arrays[f"rows/{split}"])
    return (
        HeldOut(
            rows, members_of(source, arrays, split, rows), lambda some: _batch(source, arrays, some)
        ),
    )


def members_of(source: FilesConfig, arrays: Arrays, split: Split, rows: np.ndarray) -> Members:
    """Whose each of these rows [N] of a split is: its group's, or its own."""
    if source.group is None:
        return {"row": np.searchsorted(arrays[f"rows/{split}"], rows)}
    known = np.unique(arrays["group"][arrays[f"rows/{split}"]])
    return {source.group: np.searchsorted(known, arrays["group"][rows])}


def _class_population(source: FilesConfig) -> str:
    return f"class of {source.task_names[0]}"


def _choose(source: FilesConfig, arrays: Arrays, split: Split, rng: np.random.Generator) -> Chosen:
    """All chances of an episode."""
    shots = drawn(source.shots, rng)
    if source.episodes == "classes":
        return _choose_classes(source, arrays, split, shots, rng)
    rows, starts = arrays[f"rows/{split}"], arrays.get(f"starts/{split}")
    domain = "rows"
    if source.episodes == "groups" and starts is not None:
        group = int(rng.integers(len(starts) - 1))
        rows = rows[starts[group] : starts[group + 1]]
        domain = f"{source.group} {arrays[f'names/{split}'][group]}"
    elif len(source.task_names) == 1:
        # All of them are labelled, so that a single task has as many labels as are drawn.
        labelled = arrays[f"rows/{split}/{source.task_names[0]}"]
        if len(labelled) > 1:
            rows = labelled
    taken = rows[rng.choice(len(rows), min(len(rows), shots + source.queries), replace=False)]
    shots = min(shots, len(taken) - 1)
    return Chosen(taken[:shots], taken[shots:], domain)


def _choose_classes(
    source: FilesConfig, arrays: Arrays, split: Split, shots: int, rng: np.random.Generator
) -> Chosen:
    rows, starts, names = (arrays[f"{key}/{split}"] for key in ("rows", "starts", "names"))
    classes = rng.choice(len(names), drawn(source.ways, rng), replace=False)
    number = shots + source.queries
    taken = np.stack(
        [rng.choice(rows[starts[c] : starts[c + 1]], number, replace=False) for c in classes]
    )
    domain = ", ".join(names[classes].tolist())
    return Chosen(taken[:, :shots].ravel(), taken[:, shots:].ravel(), domain, classes)


def _few_shot_batch(
    source: FilesConfig, arrays: Arrays, rows: np.ndarray, num_classes: int
) -> Batch:
    """Rows of one class after the other, as many of each; classes are numbered in this order."""
    (task,) = source.task_names
    target = torch.arange(num_classes).repeat_interleave(len(rows) // num_classes)
    return Batch(torch.from_numpy(arrays["inputs"][rows]), {task: target}, {})


def _batch(source: FilesConfig, arrays: Arrays, rows: np.ndarray) -> Batch:
    """The rows with these numbers; of a stream, those of its shuffle buffer."""
    tensors = {
        name: torch.from_numpy(values) for name, values in _gathered(source, arrays, rows).items()
    }
    names = source.task_names
    masks = {}
    if "complete" not in arrays:
        masks = {name: tensors[f"mask/{name}"] for name in names}
    return Batch(
        tensors["inputs"],
        {name: tensors[f"target/{name}"] for name in names},
        masks,
    )


def _gathered(source: FilesConfig, arrays: Arrays, rows: np.ndarray) -> Mapping[str, np.ndarray]:
    keys = [
        "inputs",
        *(f"{key}/{name}" for key in ("target", "mask") for name in source.task_names),
    ]
    offsets = arrays.get("offsets")
    if offsets is None:
        return {key: arrays[key][rows] for key in keys}
    # A shuffle buffer: rows are counted through its blocks, in the order of their slots.
    slots = np.searchsorted(offsets, rows, side="right") - 1
    gathered = {}
    for key in keys:
        first = arrays[f"0/{key}"]
        out = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for slot in np.unique(slots):
            in_slot = slots == slot
            out[in_slot] = arrays[f"{slot}/{key}"][rows[in_slot] - offsets[slot]]
        gathered[key] = out
    return gathered
