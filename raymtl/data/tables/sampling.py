"""Examples of rows: episodes at random, of a group, or of some classes; and every row of a split
once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from raymtl.data.base import Arrays, Bucket, HeldOut, Members, Population, Split, same_domain
from raymtl.data.counts import drawn
from raymtl.data.draws import Draws, alike, rows_alike
from raymtl.data.tables.augment import augmented
from raymtl.data.tables.settings import FilesConfig
from raymtl.types import Batch, Episode


class Chosen(NamedTuple):
    """The rows of episodes that are alike, [E, N] each."""

    draws: Draws
    """The generators of these episodes."""
    support: np.ndarray
    query: np.ndarray
    domains: Callable[[], Sequence[str]]
    classes: np.ndarray | None = None
    """[E, ways]: those of the rows, where an episode is some classes."""


def draw(source: FilesConfig, arrays: Arrays, split: Split, draws: Draws) -> Iterator[Bucket]:
    """Episodes of rows.

    Where a group or a split has fewer rows than are asked for, the query set gets fewer, then the
    support set.
    """
    for chosen in _choose(source, arrays, split, draws):
        if chosen.classes is None:
            batches = [_batch(source, arrays, rows) for rows in (chosen.support, chosen.query)]
        else:
            batches = [
                _few_shot_batch(source, arrays, rows, chosen.classes.shape[1])
                for rows in (chosen.support, chosen.query)
            ]
        episode = Episode(*batches)
        if source.augment is not None and split == "train":
            episode = augmented(source.augment, episode, source.make_tasks(), chosen.draws)
        yield Bucket(episode, chosen.draws.indices, chosen.domains)


def query_rows(
    source: FilesConfig, arrays: Arrays, split: Split, draws: Draws
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The query rows of one episode, and the names of its classes where it is of some."""
    (chosen,) = _choose(source, arrays, split, draws)
    classes: tuple[str, ...] = ()
    if chosen.classes is not None:
        classes = tuple(arrays[f"names/{split}"][chosen.classes[0]].tolist())
    return chosen.query[0], classes


def query_members(
    source: FilesConfig, arrays: Arrays, split: Split, draws: Draws
) -> Mapping[str, Members]:
    """Whose the query rows of one episode are: of the group, of the classes, or each its own."""
    (chosen,) = _choose(source, arrays, split, draws)
    (rows,) = chosen.query
    if chosen.classes is None:
        members = members_of(source, arrays, split, rows)
    else:
        members = {_class_population(source): np.tile(chosen.classes[0], (len(rows), 1))}
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


def _choose(source: FilesConfig, arrays: Arrays, split: Split, draws: Draws) -> Iterator[Chosen]:
    """All chances of the episodes."""
    shots = drawn(source.shots, draws)
    if source.episodes == "classes":
        yield from _choose_classes(source, arrays, split, shots, draws)
        return
    rows, starts = arrays[f"rows/{split}"], arrays.get(f"starts/{split}")
    if source.episodes == "groups" and starts is not None:
        yield from _choose_groups(source, arrays, split, shots, draws)
        return
    if len(source.task_names) == 1:
        # All of them are labelled, so that a single task has as many labels as are drawn.
        labelled = arrays[f"rows/{split}/{source.task_names[0]}"]
        if len(labelled) > 1:
            rows = labelled
    for own, (num_shots,) in alike(draws, shots):
        number = min(len(rows), num_shots + source.queries)
        taken = rows[own.choice(len(rows), number)]
        end = min(num_shots, number - 1)
        domains = same_domain("rows", len(own))
        yield Chosen(own, taken[:, :end], taken[:, end:], domains)


def _choose_groups(
    source: FilesConfig, arrays: Arrays, split: Split, shots: int | np.ndarray, draws: Draws
) -> Iterator[Chosen]:
    rows, starts, names = (arrays[f"{key}/{split}"] for key in ("rows", "starts", "names"))
    sizes = np.diff(starts)
    groups = draws.integers(len(sizes))
    numbers = np.minimum(sizes[groups], shots + source.queries)
    ends = np.minimum(shots, numbers - 1)
    for episodes, (number, end) in rows_alike(len(draws), numbers, ends):
        own, group = draws[episodes], groups[episodes]
        taken = rows[starts[group, None] + own.choice(sizes[group], number)]
        domains = partial(_group_names, source, names[group])
        yield Chosen(own, taken[:, :end], taken[:, end:], domains)


def _group_names(source: FilesConfig, names: np.ndarray) -> list[str]:
    return [f"{source.group} {name}" for name in names]


def _choose_classes(
    source: FilesConfig, arrays: Arrays, split: Split, shots: int | np.ndarray, draws: Draws
) -> Iterator[Chosen]:
    rows, starts, names = (arrays[f"{key}/{split}"] for key in ("rows", "starts", "names"))
    ways = drawn(source.ways, draws)
    for own, (num_ways, num_shots) in alike(draws, ways, shots):
        classes = own.choice(len(names), num_ways)
        number = num_shots + source.queries
        first, sizes = starts[classes].reshape(-1), np.diff(starts)[classes].reshape(-1)
        taken = rows[first[:, None] + own.split(num_ways).choice(sizes, number)]
        taken = taken.reshape(len(own), num_ways, number)
        support, query = (
            part.reshape(len(own), -1) for part in (taken[..., :num_shots], taken[..., num_shots:])
        )
        domains = partial(_class_names, names[classes])
        yield Chosen(own, support, query, domains, classes)


def _class_names(names: np.ndarray) -> list[str]:
    return [", ".join(own) for own in names.tolist()]


def _few_shot_batch(
    source: FilesConfig, arrays: Arrays, rows: np.ndarray, num_classes: int
) -> Batch:
    """Rows [E, N] of one class after the other, as many of each; classes are numbered in this
    order.
    """
    (task,) = source.task_names
    labels = torch.arange(num_classes).repeat_interleave(rows.shape[1] // num_classes)
    inputs = torch.from_numpy(_gathered(arrays, ["inputs"], rows)["inputs"])
    return Batch(inputs, {task: labels.repeat(len(rows), 1)}, {})


def _batch(source: FilesConfig, arrays: Arrays, rows: np.ndarray) -> Batch:
    """The rows with these numbers [...]; of a stream, those of its shuffle buffer."""
    names = source.task_names
    keys = ["inputs", *(f"target/{name}" for name in names)]
    if "complete" not in arrays:
        keys += [f"mask/{name}" for name in names]
    tensors = {
        name: torch.from_numpy(values) for name, values in _gathered(arrays, keys, rows).items()
    }
    masks = {}
    if "complete" not in arrays:
        masks = {name: tensors[f"mask/{name}"] for name in names}
    return Batch(
        tensors["inputs"],
        {name: tensors[f"target/{name}"] for name in names},
        masks,
    )


def _gathered(arrays: Arrays, keys: Sequence[str], rows: np.ndarray) -> Mapping[str, np.ndarray]:
    """The rows of these arrays, wherever they are."""
    if "shards/place" in arrays:
        from raymtl.data.shards.reader import gather_rows

        return gather_rows(arrays, keys, rows)
    offsets = arrays.get("offsets")
    if offsets is None:
        return {key: np.take(arrays[key], rows, axis=0) for key in keys}
    # A shuffle buffer: rows are counted through its blocks, in the order of their slots.
    slots = np.searchsorted(offsets, rows, side="right") - 1
    gathered = {}
    for key in keys:
        first = arrays[f"0/{key}"]
        out = np.empty((*rows.shape, *first.shape[1:]), first.dtype)
        for slot in np.unique(slots):
            in_slot = slots == slot
            out[in_slot] = arrays[f"{slot}/{key}"][rows[in_slot] - offsets[slot]]
        gathered[key] = out
    return gathered
