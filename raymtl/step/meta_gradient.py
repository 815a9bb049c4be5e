"""One outer step, pure torch: query losses -> weights -> meta-gradient.

The result is exact on any number of workers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from raymtl.step.algorithm import Algorithm
from raymtl.step.context import StepBatch, StepContext, step_batch
from raymtl.step.execution import (
    ExecutionConfig,
    laid_out,
    over_episodes,
    pieces_at_once,
    split_episodes,
)
from raymtl.step.outer_loss import (
    auxiliary_gradient,
    displacement,
    penalty_gradient,
    query_losses,
)
from raymtl.step.task_gradients import Losses, TaskGradients
from raymtl.step.workers import Workers
from raymtl.types import DivergedError, MetaBatch, Params, prefixed, select
from raymtl.weighting import GradientWeighting
from raymtl.weighting.base import LossWeighting


class MetaGradient(NamedTuple):
    """What one outer step computes, equal on all workers."""

    grads: dict[str, Tensor]
    losses: Tensor
    """Query loss of each task, [K], the mean over all labelled examples of all workers; nan for a
    task without any.
    """
    weights: Tensor
    """Weight of each task's loss or, for gradient methods, of each task's gradient, [K]; 0 for a
    task without labels.
    """
    tasks: Tensor
    """Which tasks have labels in this meta-batch: indices, in ascending order."""
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
    So shards of unequal size and missing labels weigh by count, and a task without any label takes
    no part. The gradients of the tasks are summed over workers before the weighting sees them.

    `params` are named as by `Algorithm.init_params`. `episodes` is this worker's shard, of any
    size: one stack [E, ...] or, where episodes differ in shape, several. `step` is the outer step,
    which some learners anneal by. Raises DivergedError where a loss is not finite.
    """
    params = laid_out(params, execution)
    context = StepContext(algorithm, params, workers, execution)
    batch = step_batch(context, episodes, step)
    private = algorithm.private(params)
    names = sorted(params, key=lambda name: name in private)  # shared ones first; sorting is stable
    if algorithm.learner.uses_query_gradient:
        outer = _query_gradient(context, batch, names, len(private))
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


class _OuterGradient(NamedTuple):
    """A flat gradient in the order of the names, and by name the gradients that bypass it."""

    flat: Tensor
    losses: Tensor
    """The query losses, [K]."""
    weights: Tensor
    """Those of the tasks that have labels."""
    direct: dict[str, Tensor]
    """Gradients of terms that belong to no task."""


def _query_gradient(
    context: StepContext, batch: StepBatch, names: Sequence[str], num_private: int
) -> _OuterGradient:
    """The gradient of the weighted query losses.

    The last `num_private` of the `names` are the parameters of a single task each.
    """
    weighting = context.algorithm.weighting
    leaves = [context.params[name] for name in names]
    shared, private = leaves[: len(names) - num_private], leaves[len(names) - num_private :]
    by_gradients = isinstance(weighting, GradientWeighting) and len(batch.tasks) > 0
    knows_weights = isinstance(weighting, LossWeighting) and weighting.knows_weights
    # Where the losses have no say in what is computed of a graph, each graph can go at once.
    micro_batches = _micro_batches(context, batch, at_once=by_gradients or knows_weights)
    gradients = TaskGradients(micro_batches, batch.tasks.tolist(), shared, private, context.workers)
    if isinstance(weighting, GradientWeighting) and by_gradients:
        gradients.compute()
        losses = _summed(context, gradients.losses)
        weights = weighting.weigh(losses[batch.tasks], gradients, batch.tasks)
        return _OuterGradient(gradients.combine(weights), losses, weights, {})
    if knows_weights:
        return _gradient_of_known_weights(context, batch, gradients)
    return _gradient_of_weighed_losses(context, batch, gradients)


def _gradient_of_known_weights(
    context: StepContext, batch: StepBatch, gradients: TaskGradients
) -> _OuterGradient:
    """The gradient where the weights are known before the losses."""
    own = select(context.params, "weighting")
    known: Tensor = functional_call(context.algorithm.weighting, own, ()).detach()
    flat = gradients.weighted(known[batch.tasks])
    losses = _summed(context, gradients.losses)
    weights, direct = _weigh_losses(context.algorithm, context.params, losses, batch.tasks)
    return _OuterGradient(flat, losses, weights, direct)


def _gradient_of_weighed_losses(
    context: StepContext, batch: StepBatch, gradients: TaskGradients
) -> _OuterGradient:
    """The gradient where the losses of all episodes decide the weights.

    Their graph waits for the weights or, with several micro-batches, they are computed again.
    """
    micro_batches = gradients.micro_batches
    if len(micro_batches) == 1:
        only = micro_batches[0]()
        gradients.micro_batches, values = [lambda: only], only.values
    else:
        with torch.no_grad():
            values = _summed_losses(micro_batches)
    losses = _summed(context, values.detach())
    weights, direct = _weigh_losses(context.algorithm, context.params, losses, batch.tasks)
    return _OuterGradient(gradients.weighted(weights), losses, weights, direct)


def _summed(context: StepContext, local: Tensor | None) -> Tensor:
    """The losses [K] of all workers. Raises DivergedError where one is not finite."""
    assert local is not None  # every worker has a micro-batch
    losses = context.workers.sum(local)
    _refuse_infinite(context.algorithm, losses)
    return losses


def _micro_batches(
    context: StepContext, batch: StepBatch, at_once: bool
) -> list[Callable[[], Losses]]:
    """For each micro-batch a function that computes its losses, with their graph.

    With `at_once` a micro-batch is no more than what the execution runs at once.
    """
    shards = split_episodes(batch.episodes, context.execution.micro_batches)
    if at_once:
        shards = [piece for shard in shards for piece in pieces_at_once(shard, context.execution)]
    full = context.with_batch_embeddings(batch.episodes)
    if len(shards) > 1 or context.algorithm.learner.rematerializes:
        # What is computed later must see the weighting's state as it is now, though `weigh` changes
        # it in between.
        state = prefixed(context.algorithm.weighting.state(), "weighting")
        full = full._replace(params={**full.params, **state})
    return [partial(query_losses, full, batch._replace(episodes=shard)) for shard in shards]


def _summed_losses(micro_batches: Sequence[Callable[[], Losses]]) -> Tensor:
    """The losses [K] of all micro-batches together."""
    return torch.stack([compute().values for compute in micro_batches]).sum(0)


def _displacement_gradient(
    context: StepContext, batch: StepBatch, names: Sequence[str]
) -> _OuterGradient:
    """The mean displacement by adapting, for learners without a query gradient."""
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
    _refuse_infinite(algorithm, losses)
    weights, direct = _weigh_losses(algorithm, params, losses, batch.tasks)
    return _OuterGradient(flat, losses, weights, direct | auxiliary_gradient(context, batch))


def update_after_step(
    algorithm: Algorithm,
    params: Params,
    episodes: MetaBatch,
    meta: MetaGradient,
    workers: Workers = Workers(),
    execution: ExecutionConfig = ExecutionConfig(),
) -> None:
    """Gives the weighting the losses of the same batch after the outer step.

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
        full = context.with_batch_embeddings(batch.episodes)
        rows = []
        for shard in split_episodes(batch.episodes, execution.micro_batches):
            rows.append(query_losses(full, batch._replace(episodes=shard)).values)
        after = workers.sum(torch.stack(rows).sum(0))
    _refuse_infinite(algorithm, after)
    algorithm.weighting.update_after_step(meta.losses[meta.tasks], after[meta.tasks], meta.tasks)


def _weigh_losses(
    algorithm: Algorithm, params: Params, losses: Tensor, tasks: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weights [K] of `tasks`, and the gradient of the total for the weighting's parameters.

    Raises TypeError for a weighting of gradients, of which there are none to weigh here.
    """
    if not len(tasks):
        return losses[:0], {}
    if isinstance(algorithm.weighting, GradientWeighting):
        raise TypeError(
            f"expected a weighting of losses for {type(algorithm.learner).__name__}, which has "
            f"no query gradient, got {type(algorithm.weighting).__name__}."
        )
    present = losses[tasks].detach().requires_grad_()
    own = select(params, "weighting")
    weighed = functional_call(algorithm.weighting, own, (present, tasks))
    if weighed.ndim:
        return weighed.detach(), {}
    weights, *grads = torch.autograd.grad(weighed, [present, *own.values()], allow_unused=True)
    by_name = {name: grad for name, grad in zip(own, grads, strict=True) if grad is not None}
    return weights, prefixed(by_name, "weighting")


def _refuse_infinite(algorithm: Algorithm, losses: Tensor) -> None:
    for task, loss in zip(algorithm.tasks, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            raise DivergedError(f"the query loss of task '{task.name}' is {loss}")


def _unflattened(flat: Tensor, params: Params, names: Sequence[str]) -> dict[str, Tensor]:
    """The pieces of a flat vector, in the order of the names and the shapes of the parameters."""
    sizes = [params[name].numel() for name in names]
    pieces = zip(names, flat.split(sizes), strict=True)
    return {name: piece.view_as(params[name]) for name, piece in pieces}
