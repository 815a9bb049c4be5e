"""Test examples with what the model predicts of them, before and after it adapts."""

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
    """One query input of each of the first episodes, with what is predicted before and after
    adaptation.
    """
    raw, domains = build_episodes(
        experiment.data, arrays, seed=experiment.seed, split=split, step=0, indices=range(EXAMPLES)
    )
    rows: list[dict[str, Any]] = []
    names = iter(domains)
    for stack in raw:
        own = list(islice(names, len(next(iter(stack.query.targets.values())))))
        if isinstance(
            stack.query.inputs, Tensor
        ):  # tasks with inputs of their own have none in common
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
            row |= told(f"{task.name}.target", raw.query.targets[task.name][index, 0])
            row |= told(
                f"{task.name}.before",
                task.decode(before[task.name][index, :1])[0] if before else None,
            )
            row |= told(f"{task.name}.after", task.decode(after[task.name][index, :1])[0])
        rows.append(row)
    return rows


def told(column: str, value: Tensor | None) -> dict[str, Any]:
    """What a row of a file has in the column: a number; or a list of them, row-major, and its shape
    beside it.
    """
    if value is None:
        return {column: None}
    if not value.ndim:
        return {column: float(value)}
    every = math.ceil(math.sqrt(value.numel() / SHOWN_NUMBERS))
    if value.ndim > 1 and every > 1:
        value = value[..., ::every, ::every]
    return {column: value.double().flatten().tolist(), f"{column}.shape": list(value.shape)}
