"""The examples of a split that are scored, and their groups. A model that adapts is scored on
episodes, any other on every example once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.data import Arrays, Source, Split
from raymtl.data.base import HeldOut, Members
from raymtl.data.episodes import build_buckets, generators, on_device
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, over_episodes
from raymtl.step.workers import Workers
from raymtl.tasks import num_sums
from raymtl.types import Batch, Episode, Params, Task

EXAMPLES_AT_ONCE = 256
EPISODES_AT_ONCE = 20
NUMBERS_AT_ONCE = 2**22
"""Of inputs or predictions that are in memory together, where that is fewer examples."""
NUM_GROUPS = (1000, 500, 250, 125)
"""Into how many groups members are put for intervals, at most: the most that `NUMBERS_OF_GROUPS`
leaves room for. Each divides the one before, so that those of two models can be joined.
"""
NUMBERS_OF_GROUPS = 2**25


class Scored(NamedTuple):
    """Predictions for N examples of each task after `steps` inner steps; None stands for the
    learner's own number.
    """

    steps: int | None
    predictions: Mapping[str, Tensor]
    batch: Batch
    groups: Mapping[str, Mapping[str, Tensor]]
    """Task -> partition -> numbers of the groups that its examples are in, [N, k]; -1 for none."""


class HeldOutSplit(NamedTuple):
    """The examples of a split that are scored, and the partitions for their intervals."""

    experiment: Experiment
    arrays: Arrays
    split: Split
    sections: Sequence[HeldOut]
    """Every example once; empty if the model adapts, or if the source generates its examples
    randomly.
    """
    num_episodes: int
    num_groups: Mapping[str, int]
    """Partition -> its groups."""
    whole: frozenset[str]

    @property
    def source(self) -> Source:
        return self.experiment.data


def held_out_split(
    experiment: Experiment,
    algorithm: Algorithm,
    arrays: Arrays,
    split: Split,
    episodes: int,
    *,
    steps: int = 1,
) -> HeldOutSplit:
    """The examples of a split that are scored. `steps` is how many numbers of inner steps have
    intervals in memory at the same time.
    """
    source = experiment.data
    sections = () if algorithm.uses_support else source.every_example(arrays, split)
    populations = source.populations(arrays, split)
    most = _num_groups(algorithm.tasks, steps * (len(populations) + 2))
    groups = {
        own.name: min(episodes if own.size is None else own.size, most) for own in populations
    }
    whole = frozenset(own.name for own in populations if own.whole)
    several = any(members.ndim > 1 for section in sections for members in section.members.values())
    if sections and several:
        groups["examples"] = most
    if not sections and all(own.size is not None for own in populations):
        groups |= {"episodes": min(episodes, most), "examples": most}
    return HeldOutSplit(experiment, arrays, split, sections, episodes, groups, whole)


def _num_groups(tasks: Sequence[Task], tables: int) -> int:
    numbers = tables * num_sums(tasks)
    return next(
        (number for number in NUM_GROUPS if number * numbers <= NUMBERS_OF_GROUPS), NUM_GROUPS[-1]
    )


def scored(
    held: HeldOutSplit,
    algorithm: Algorithm,
    params: Params,
    execution: ExecutionConfig = ExecutionConfig(),
    workers: Workers = Workers(),
    steps: Sequence[int | None] = (None,),
) -> Iterator[Scored]:
    """Yields this worker's shard of the predictions to score, after each of these numbers of inner
    steps.
    """
    if held.sections:
        for one in _every_example(held, algorithm, params, execution, workers):
            yield from (one._replace(steps=number) for number in steps)
    else:
        yield from _episodes(held, algorithm, params, execution, workers, steps)


def _every_example(
    held: HeldOutSplit,
    algorithm: Algorithm,
    params: Params,
    execution: ExecutionConfig,
    workers: Workers,
) -> Iterator[Scored]:
    device = next(iter(params.values())).device
    at_once = max(
        1,
        min(EXAMPLES_AT_ONCE, NUMBERS_AT_ONCE // _numbers_of_example(held.source, algorithm.tasks)),
    )
    if execution.chunk is not None:  # memory is short
        at_once = min(at_once, 16 * execution.chunk)
    chunks = [
        (section, slice(start, start + at_once), offset + start)
        for section, offset in _with_offsets(held.sections)
        for start in range(0, len(section.rows), at_once)
    ]
    for section, part, number in chunks[workers.rank :: workers.size]:
        batch = on_device(section.batch(section.rows[part]), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=execution.precision == "bfloat16"):
            predictions = algorithm.predict(params, batch.inputs)
        members = {name: values[part] for name, values in section.members.items()}
        members["examples"] = number + np.arange(len(section.rows[part]))
        groups = _groups(held, members, device)
        yield Scored(None, predictions, batch, dict.fromkeys(batch.targets, groups))


def _with_offsets(sections: Sequence[HeldOut]) -> Iterator[tuple[HeldOut, int]]:
    offset = 0
    for section in sections:
        yield section, offset
        offset += len(section.rows)


def _episodes(
    held: HeldOutSplit,
    algorithm: Algorithm,
    params: Params,
    execution: ExecutionConfig,
    workers: Workers,
    steps: Sequence[int | None],
) -> Iterator[Scored]:
    """Held-out episodes in groups; they are those of step 0, whatever was trained."""
    device = next(iter(params.values())).device
    source, split, seed = held.source, held.split, held.experiment.seed
    share = workers.share(held.num_episodes)
    at_once = EPISODES_AT_ONCE
    start = share.start
    while start < share.stop:
        indices = range(start, min(start + at_once, share.stop))
        for bucket in build_buckets(
            source, held.arrays, seed=seed, split=split, step=0, indices=indices
        ):
            groups = _groups_of_episodes(held, bucket.episodes.query, bucket.indices, device)
            episodes = on_device(bucket.episodes, device)
            number = len(next(iter(bucket.episodes.query.targets.values()))[0])
            most = NUMBERS_AT_ONCE // (number * _numbers_of_example(source, algorithm.tasks))
            at_once = max(1, min(EPISODES_AT_ONCE, most))
            query = episodes.query
            flat = Batch(
                query.inputs, *(_flattened(values) for values in (query.targets, query.masks))
            )
            for step in steps:
                predict = partial(_predicted, algorithm, params, steps=step)
                yield Scored(
                    step, _flattened(over_episodes(predict, episodes, execution)), flat, groups
                )
        start = indices.stop


def _predicted(
    algorithm: Algorithm, params: Params, episode: Episode, *, steps: int | None
) -> dict[str, Tensor]:
    """Predictions of the query set after `steps` inner steps on the support set."""
    unadapted = steps == 0 and algorithm.learner.supports_zero_shot
    support = episode.support
    if unadapted:
        adapted = algorithm.normalised(params, support)
    else:
        adapted = algorithm.adapt(params, support, steps)
    return algorithm.predict(adapted, episode.query.inputs)


def _flattened(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """[E, N, ...] -> [E * N, ...]."""
    return {name: value.flatten(0, 1) for name, value in values.items()}


def _groups_of_episodes(
    held: HeldOutSplit, query: Batch, indices: np.ndarray, device: torch.device
) -> dict[str, dict[str, Tensor]]:
    """Task -> partition -> the groups of its query examples, episode after episode."""
    source, split, seed = held.source, held.split, held.experiment.seed
    drawn: list[Mapping[str, Members]] = [{} for _ in indices]
    if "episodes" in held.num_groups:
        drawn = [
            source.query_members(held.arrays, split, generators(seed, split, 0, [index]))
            for index in indices.tolist()
        ]
    found = {}
    for name, target in query.targets.items():
        number = target.shape[1]
        episode = np.repeat(indices, number)
        members = {
            "episodes": episode,
            "examples": episode * number + np.tile(np.arange(number), len(indices)),
        }
        for population in held.num_groups:
            if population not in members:
                own = [part[name][population] for part in drawn if population in part.get(name, {})]
                if own:
                    members[population] = np.concatenate(own)
                else:
                    members[population] = episode
        found[name] = _groups(held, members, device)
    return found


def _groups(
    held: HeldOutSplit, members: Mapping[str, np.ndarray], device: torch.device
) -> dict[str, Tensor]:
    """Members [N] or [N, k] -> the groups that they are in, [N, k]."""
    found = {}
    for name, number in held.num_groups.items():
        if name in members:
            values = torch.from_numpy(np.ascontiguousarray(members[name])).to(device)
            values = values.reshape(len(values), -1)
            found[name] = torch.where(values < 0, values, values % number)
    return found


def _numbers_of_example(source: Source, tasks: Sequence[Task]) -> int:
    outputs = sum(
        task.out_features * math.prod(task.target_shape[-2:]) if task.is_dense else 1
        for task in tasks
    )
    return max(math.prod(source.encoder_shape), outputs)
