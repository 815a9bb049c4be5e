"""Embeddings of tasks, and how the tasks of an episode attend to each other."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map

from raymtl.config import Experiment
from raymtl.data import Arrays, Split
from raymtl.data.episodes import build_episodes, on_device
from raymtl.step.algorithm import Algorithm
from raymtl.tasks import label_counts
from raymtl.types import Params

RELATED = 120
"""Tasks that are compared with each other at most; the comparisons are their square."""


@torch.no_grad()
def embeddings(
    experiment: Experiment,
    algorithm: Algorithm,
    params: Params,
    arrays: Arrays,
    *,
    split: Split,
    episodes: int,
) -> list[dict[str, Any]]:
    """The rows of embeddings.parquet: the learner's embedding of each task of held-out episodes;
    empty if the learner does not embed tasks.
    """
    rows: list[dict[str, Any]] = []
    # One by one, for episodes that differ in shape would come in another order.
    for index in range(episodes):
        (stack,), (domain,) = build_episodes(
            experiment.data, arrays, seed=experiment.seed, split=split, step=0, indices=[index]
        )
        support = tree_map(
            lambda leaf: leaf[0], on_device(stack, next(iter(params.values())).device).support
        )
        embedded = algorithm.learner.embed(algorithm.model, params, support)
        if embedded is None:
            return []
        labelled = label_counts(algorithm.tasks, support) > 0
        rows += [
            {
                "split": split,
                "episode": index,
                "task": task.name,
                "domain": domain,
                "embedding": own,
            }
            for task, own, known in zip(
                algorithm.tasks, embedded.tolist(), labelled.tolist(), strict=True
            )
            if known
        ]
    return rows


@torch.no_grad()
def relations(
    algorithm: Algorithm, params: Params, embedded: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of relations.parquet: how the learner relates the first of these tasks to each
    other.
    """
    shown = embedded[:RELATED]
    if not shown:
        return []
    like = next(iter(params.values()))
    matrix = algorithm.learner.relations(
        params, like.new_tensor([row["embedding"] for row in shown])
    )
    if matrix is None:
        return []
    return [
        {
            "episode": row["episode"],
            "task": row["task"],
            "domain": row["domain"],
            "relations": line,
        }
        for row, line in zip(shown, matrix.tolist(), strict=True)
    ]
