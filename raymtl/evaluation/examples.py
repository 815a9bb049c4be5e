"""Test examples with the model's predictions, before and after it adapts."""

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

from torch import Tensor

from raymtl.config import Experiment
from raymtl.data import Arrays, Split
from raymtl.data.episodes import build_episodes, on_device
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, over_episodes
from raymtl.types import Episode, Params

EXAMPLES = 12


SHOWN_NUMBERS = 16384
"""Of an output with values for pixels in examples.parquet; of larger ones every second pixel is
kept, or fewer.
"""


def example_rows(
    experiment: Experiment, algorithm: Algorithm, params: Params, arrays: Arrays, split: Split
) -> list[dict[str, Any]]:
    """One query input of each of the first episodes, with the predictions before and after
    adaptation.
    """
    raw, domains = build_episodes(
        experiment.data, arrays, seed=experiment.seed, split=split, step=0, indices=range(EXAMPLES)
    )
    rows: list[dict[str, Any]] = []
    names = iter(domains)
    for stack in raw:
        own = list(islice(names, len(next(iter(stack.query.targets.values())))))
        # Tasks that each have their own inputs have none in common.
        if isinstance(stack.query.inputs, Tensor):
            rows += _examples_of(algorithm, params, stack, own)
    return rows


def _examples_of(
    algorithm: Algorithm, params: Params, raw: Episode, domains: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows of one stack."""
    assert isinstance(raw.query.inputs, Tensor)
    episodes = on_device(raw, next(iter(params.values())).device)

    def predict(episode: Episode) -> dict[str, Tensor]:
        adapted = algorithm.adapt(params, episode.support)
        return algorithm.predict(adapted, episode.query.inputs)

    after = over_episodes(predict, episodes, ExecutionConfig())
    if algorithm.learner.supports_zero_shot:
        before = over_episodes(
            lambda e: algorithm.predict(algorithm.normalised(params, e.support), e.query.inputs),
            episodes,
            ExecutionConfig(),
        )
    else:
        before = None
    rows = []
    for index, (domain, example) in enumerate(zip(domains, raw.query.inputs[:, 0], strict=True)):
        row: dict[str, Any] = {
            "domain": domain,
            "input": example.flatten().tolist(),
            "shape": list(example.shape),
        }
        for task in algorithm.tasks:
            if task.name in raw.query.masks and not raw.query.masks[task.name][index, 0]:
                continue
            name = task.name
            row |= column_values(f"{name}.target", raw.query.targets[name][index, 0])
            decoded_before = None
            if before:
                decoded_before = task.decode(before[name][index, :1])[0]
            row |= column_values(f"{name}.before", decoded_before)
            row |= column_values(f"{name}.after", task.decode(after[name][index, :1])[0])
        rows.append(row)
    return rows


def column_values(column: str, value: Tensor | None) -> dict[str, Any]:
    """The value as a column of a row: a number, or a row-major list with its shape in another
    column.
    """
    if value is None:
        return {column: None}
    if not value.ndim:
        return {column: float(value)}
    every = math.ceil(math.sqrt(value.numel() / SHOWN_NUMBERS))
    if value.ndim > 1 and every > 1:
        value = value[..., ::every, ::every]
    return {column: value.double().flatten().tolist(), f"{column}.shape": list(value.shape)}
