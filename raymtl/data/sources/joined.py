"""Joins the episodes of several sources, the parts of `several`, into episodes of all of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raymtl.data.base import Arrays, Bucket, Source
from raymtl.types import Batch, Episode, Task, UserError


def named_domains(part: str, domains: Callable[[], Sequence[str]]) -> list[str]:
    return [f"{part} {domain}" for domain in domains()]


def joined_buckets(drawn: Mapping[str, Sequence[Bucket]]) -> Iterator[Bucket]:
    """Joins the episodes of all parts that have the same index."""
    holders: dict[int, list[int]] = {}  # index -> which of its buckets holds it, of each part
    for buckets in drawn.values():
        for number, bucket in enumerate(buckets):
            for index in bucket.indices.tolist():
                holders.setdefault(index, []).append(number)
    kinds: dict[tuple[int, ...], list[int]] = {}
    for index, numbers in holders.items():
        kinds.setdefault(tuple(numbers), []).append(index)
    for held_by, indices in kinds.items():
        own = {
            part: _selected(buckets[number], indices)
            for (part, buckets), number in zip(drawn.items(), held_by, strict=True)
        }
        support = joined_batch({part: bucket.episodes.support for part, bucket in own.items()})
        query = joined_batch({part: bucket.episodes.query for part, bucket in own.items()})
        domains = partial(_joined_domains, {part: bucket.domains for part, bucket in own.items()})
        yield Bucket(Episode(support, query), np.array(indices), domains)


def _selected(bucket: Bucket, indices: Sequence[int]) -> Bucket:
    """The episodes with these indices, in this order."""
    if bucket.indices.tolist() == indices:
        return bucket
    places = {index: place for place, index in enumerate(bucket.indices.tolist())}
    rows = [places[index] for index in indices]

    def domains() -> list[str]:
        names = bucket.domains()
        return [names[row] for row in rows]

    own = torch.tensor(rows)
    episodes = tree_map(lambda leaf: leaf.index_select(0, own), bucket.episodes)
    return Bucket(episodes, np.array(indices), domains)


def _joined_domains(domains: Mapping[str, Callable[[], Sequence[str]]]) -> list[str]:
    named = [named_domains(part, of_part) for part, of_part in domains.items()]
    return [" + ".join(own) for own in zip(*named, strict=True)]


def joined_batch(batches: Mapping[str, Batch]) -> Batch:
    """One batch in which every task has the inputs of its part."""
    inputs: dict[str, Tensor] = {}
    targets: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for part, batch in batches.items():
        own = (
            dict.fromkeys(batch.targets, batch.inputs)
            if isinstance(batch.inputs, Tensor)
            else batch.inputs
        )
        for whole, values in ((inputs, own), (targets, batch.targets), (masks, batch.masks)):
            whole.update({f"{part}_{task}": value for task, value in values.items()})
    return Batch(inputs, targets, masks)


def completed_batch(tasks: Sequence[Task], part: str, batch: Batch) -> Batch:
    """With the targets of all tasks, those of other parts masked; of examples [N], or of episodes
    [E, N].
    """
    shapes = {task.name: task.target_shape for task in tasks}
    name, target = next(iter(batch.targets.items()))
    own_shape = shapes[f"{part}_{name}"]
    axes = target.shape[: target.ndim - len(own_shape)]
    targets, masks = {}, {}
    for name, shape in shapes.items():
        owner, _, own_name = name.partition("_")
        if owner == part:
            targets[name] = batch.targets[own_name]
            masks[name] = batch.masks.get(own_name, torch.ones(axes, dtype=torch.bool))
        else:
            targets[name] = torch.zeros(*axes, *shape, dtype=torch.int64)
            masks[name] = torch.zeros(axes, dtype=torch.bool)
    return Batch(batch.inputs, targets, masks)


@contextmanager
def errors_of_part(part: str) -> Iterator[None]:
    """Names the part in what is said of its keys inside."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("data.", f"data.parts.{part}.")) from None


def arrays_of_part(part: str, arrays: Arrays) -> Arrays:
    """The arrays of one part, under the names that it knows."""
    return {
        key.partition("/")[2]: array for key, array in arrays.items() if key.startswith(f"{part}/")
    }


def input_arrays_of(parts: Mapping[str, Source]) -> tuple[str, ...]:
    """The arrays of all parts that a frozen encoder puts features in the place of."""
    keys: list[str] = []
    for part, source in parts.items():
        with errors_of_part(part):
            keys += [f"{part}/{key}" for key in source.input_arrays()]
    return tuple(keys)


def odds_of(
    parts: Mapping[str, Source],
    arrays: Arrays,
    odds: Mapping[str, float],
    temperature: float | str | None,
) -> np.ndarray:
    """How often each part is drawn: its `odds`, or p ~ n^(1 / T) of its size n."""
    if isinstance(temperature, float):
        sizes = [
            max(source.sizes(arrays_of_part(part, arrays)).values())
            for part, source in parts.items()
        ]
        logarithms = np.log(sizes) / temperature
        weights: np.ndarray = np.exp(logarithms - logarithms.max())
    else:
        weights = np.array([odds.get(part, 1.0) for part in parts])
    normalised: np.ndarray = weights / weights.sum()
    return normalised


def check_temperature(
    temperature: float | str | None,
    odds: Mapping[str, float],
    episodes: str,
    parts: Mapping[str, Source],
) -> None:
    """Refuses a temperature where something else says how often parts are drawn."""
    if temperature is None:
        return
    if odds or episodes == "together":
        other = "data.episodes: together"
        if odds:
            other = "data.odds"
        raise UserError(
            f"data.temperature: expected none with {other}, which says how often a part is drawn, "
            f"got {temperature}. Leave one away."
        )
    streamed = [name for name, part in parts.items() if part.is_resolved and part.is_streamed]
    if streamed and temperature != "inf":
        raise UserError(
            f"data.temperature: expected parts that fit into memory, since it goes by numbers of "
            f"rows, got data.parts.{streamed[0]}, which is streamed. Set data.odds in its place."
        )


def check_alike(parts: Mapping[str, Source]) -> None:
    """Refuses parts whose inputs differ, and several that are streamed."""
    (first, one), *others = parts.items()
    for name, other in others:
        if (other.input_shape, other.is_image) != (one.input_shape, one.is_image):
            raise UserError(
                f"data.parts.{name}: expected inputs of shape {one.input_shape} as "
                f"data.parts.{first} has, got {other.input_shape}. One encoder reads them all: "
                "take sources whose inputs are alike."
            )
        if other.slots != one.slots:
            raise UserError(
                f"data.parts.{name}: expected columns of text where data.parts.{first} has "
                "them, got others. One encoder reads them all: take sources whose inputs are "
                "alike."
            )
    streamed = [name for name, part in parts.items() if part.is_streamed]
    if len(streamed) > 1:
        raise UserError(
            f"data.parts.{streamed[1]}.in_memory_mb: expected one part that is larger than "
            f"memory, got {streamed}. Raise it for one of them."
        )
