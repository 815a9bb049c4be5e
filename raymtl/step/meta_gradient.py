"""One outer step in pure torch: query losses -> weights -> meta-gradient.

Any number of workers computes the same result.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raymtl.step.algorithm import Algorithm
from raymtl.step.context import StepBatch, StepContext, step_batch
from raymtl.step.execution import (
    ExecutionConfig,
    laid_out,
    over_episodes,
    pieces_at_once,
    split_episodes,
    suited_to,
)
from raymtl.step.outer_loss import (
    auxiliary_gradient,
    displacement,
    penalty_gradient,
    query_losses,
)
from raymtl.step.query_gradient import (
    OuterGradient,
    query_gradient,
    refuse_infinite,
    weigh_losses,
)
from raymtl.step.workers import Workers
from raymtl.types import MetaBatch, Params


class MetaGradient(NamedTuple):
    """What one outer step computes. All workers hold the same."""

    grads: dict[str, Tensor]
    losses: Tensor
    """The query loss of each task, [K]: the mean over the labelled examples of all workers, nan for
    a task without labels.
    """
    weights: Tensor
    """The weight of each task's loss, [K], or of its gradient for gradient methods; 0 for a task
    without labels.
    """
    tasks: Tensor
    """The indices of the tasks with labels in this meta-batch, in ascending order."""
    step: int = 0
    """The outer step."""


def meta_gradient(
    algorithm: Algorithm,
    params: Mapping[str, Tensor],
    episodes: MetaBatch,
    workers: Workers = Workers(),
    execution: ExecutionConfig = ExecutionConfig(),
    step: int = 0,
) -> MetaGradient:
    """The gradient of the outer objective with respect to every parameter, over all workers.

    The loss of a task is the sum over the labelled examples of all workers divided by their number.
    So every labelled example counts the same, however the shards are cut, and a task without labels
    takes no part. The gradients of the tasks are summed over workers before the weighting sees
    them.

    `params` are named as by `Algorithm.init_params`. `episodes` is this worker's shard, of any
    size: one stack [E, ...] or, where episodes differ in shape, several. `step` is the outer step,
    which some learners anneal by. Raises DivergedError where a loss is not finite.
    """
    execution = suited_to(execution, params, episodes)
    params = laid_out(params, execution)
    context = StepContext(algorithm, params, workers, execution)
    batch = step_batch(context, episodes, step)
    private = algorithm.private(params)
    names = sorted(params, key=lambda name: name in private)  # shared ones first; sorting is stable
    if algorithm.learner.uses_query_gradient:
        outer = query_gradient(context, batch, names, len(private))
    else:
        outer = _displacement_gradient(context, batch, names)

    grads = _unflattened(outer.flat, params, names)
    for name, gradient in [*outer.direct.items(), *penalty_gradient(algorithm, params).items()]:
        grads[name] = grads[name] + gradient
    losses = outer.losses
    return MetaGradient(
        grads,
        torch.where(batch.counts > 0, losses, torch.nan),
        torch.zeros_like(losses).index_copy(0, batch.tasks, outer.weights.to(losses)),
        batch.tasks,
        step,
    )


def _displacement_gradient(
    context: StepContext, batch: StepBatch, names: Sequence[str]
) -> OuterGradient:
    """The mean change of the parameters by adapting, for learners without a query gradient."""
    context = context.of_step(batch.step)
    algorithm, params, workers = context.algorithm, context.params, context.workers
    with torch.no_grad():
        sums = batch.counts.new_zeros(len(batch.counts))
        total = {name: torch.zeros_like(params[name]) for name in names}
        for piece in pieces_at_once(batch.episodes, context.execution):
            own_sums, moved = over_episodes(
                lambda episode: displacement(algorithm, params, episode),
                piece,
                context.execution,
            )
            sums = sums + own_sums.sum(0)
            for name, value in moved.items():
                total[name] += value.sum(0)
        flat = workers.sum(
            torch.cat([total[name].flatten() for name in names]) / batch.num_episodes
        )
        losses = workers.sum(sums / batch.counts.clamp(min=1))
    refuse_infinite(algorithm, losses)
    weights, direct = weigh_losses(algorithm, params, losses, batch.tasks)
    return OuterGradient(flat, losses, weights, direct | auxiliary_gradient(context, batch))


def update_after_step(
    algorithm: Algorithm,
    params: Params,
    episodes: MetaBatch,
    meta: MetaGradient,
    workers: Workers = Workers(),
    execution: ExecutionConfig = ExecutionConfig(),
) -> None:
    """Tells the weighting the losses of the same meta-batch after the outer step.

    It costs one adaptation and one forward pass.

    Args:
        algorithm: what is learned.
        params: the parameters after the step.
        episodes: this worker's shard, the same as in `meta_gradient`.
        meta: what `meta_gradient` computed before the step.
        workers: this process among those that share the meta-batch.
        execution: how the episodes are run.

    Raises:
        DivergedError: a loss is not finite.
    """
    context = StepContext(algorithm, params, workers, execution)
    batch = step_batch(context, episodes, meta.step)
    with torch.no_grad():
        full = context.with_batch_embeddings(batch.episodes).of_step(batch.step)
        rows = []
        for shard in split_episodes(batch.episodes, execution.micro_batches):
            rows.append(query_losses(full, batch._replace(episodes=shard)).values)
        after = workers.sum(torch.stack(rows).sum(0))
    refuse_infinite(algorithm, after)
    algorithm.weighting.update_after_step(meta.losses[meta.tasks], after[meta.tasks], meta.tasks)


def _unflattened(flat: Tensor, params: Params, names: Sequence[str]) -> dict[str, Tensor]:
    """The pieces of a flat vector, in the order of the names and the shapes of the parameters."""
    sizes = [params[name].numel() for name in names]
    pieces = zip(names, flat.split(sizes), strict=True)
    return {name: piece.view_as(params[name]) for name, piece in pieces}
