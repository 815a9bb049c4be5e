"""The gradient of the weighted query losses, in the memory of one graph wherever that is free."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from raymtl.step.algorithm import Algorithm
from raymtl.step.context import StepBatch, StepContext
from raymtl.step.execution import pieces_at_once, split_episodes
from raymtl.step.graph_size import graph_megabytes
from raymtl.step.outer_loss import query_losses
from raymtl.step.task_gradients import Losses, TaskGradients
from raymtl.types import DivergedError, Params, prefixed, select
from raymtl.weighting import GradientWeighting
from raymtl.weighting.base import LossWeighting


class OuterGradient(NamedTuple):
    """A flat gradient in the order of the names, and by name the gradients that bypass it."""

    flat: Tensor
    losses: Tensor
    """The query losses, [K]."""
    weights: Tensor
    """The weights of the tasks that have labels, in the order of their indices."""
    direct: dict[str, Tensor]
    """Gradients of terms that belong to no task."""


def query_gradient(
    context: StepContext, batch: StepBatch, names: Sequence[str], num_private: int
) -> OuterGradient:
    """Computes the gradient of the weighted query losses, summed over all workers.

    It uses the memory of one graph at a time wherever that costs no further pass.

    Args:
        context: the algorithm, its parameters and the workers.
        batch: this worker's episodes of the step.
        names: the parameters to differentiate by, the shared ones first.
        num_private: how many of the last names belong to a single task each.
    """
    weighting = context.algorithm.weighting
    leaves = [context.params[name] for name in names]
    num_shared = len(names) - num_private
    by_gradients = isinstance(weighting, GradientWeighting) and len(batch.tasks) > 0
    knows_weights = isinstance(weighting, LossWeighting) and weighting.knows_weights
    is_single_loss = not by_gradients and len(batch.tasks) == 1
    # Where the losses have no say in what is computed of a graph, each graph can go at once.
    at_once = by_gradients or knows_weights or is_single_loss or _exceeds_memory(context, batch)
    micro_batches = _micro_batches(context, batch, at_once)
    if is_single_loss:
        num_shared = len(names)  # the weight of a loss acts on all parameters
    gradients = TaskGradients(
        micro_batches,
        batch.tasks.tolist(),
        leaves[:num_shared],
        leaves[num_shared:],
        context.workers,
    )
    if isinstance(weighting, GradientWeighting) and by_gradients:
        gradients.compute()
        losses = _summed(context, gradients.losses)
        weights = weighting.weigh(losses[batch.tasks], gradients, batch.tasks)
        return OuterGradient(gradients.combine(weights), losses, weights, {})
    if knows_weights:
        return _gradient_of_known_weights(context, batch, gradients)
    if is_single_loss:
        return _gradient_of_one_loss(context, batch, gradients)
    return _gradient_of_weighed_losses(context, batch, gradients)


def _exceeds_memory(context: StepContext, batch: StepBatch) -> bool:
    """Whether the graphs of all episodes take more memory together than they may."""
    most = context.execution.graph_mb
    if most is None:
        return False
    return graph_megabytes(context.algorithm, context.params, batch.episodes) > most


def _gradient_of_one_loss(
    context: StepContext, batch: StepBatch, gradients: TaskGradients
) -> OuterGradient:
    """The gradient where a single task has labels: that of its loss, and then its weight."""
    gradients.compute()
    losses = _summed(context, gradients.losses)
    weights, direct = weigh_losses(context.algorithm, context.params, losses, batch.tasks)
    return OuterGradient(gradients.combine(weights), losses, weights, direct)


def _gradient_of_known_weights(
    context: StepContext, batch: StepBatch, gradients: TaskGradients
) -> OuterGradient:
    """The gradient where the weights are known before the losses."""
    own = select(context.params, "weighting")
    known: Tensor = functional_call(context.algorithm.weighting, own, ()).detach()
    flat = gradients.weighted(known[batch.tasks])
    losses = _summed(context, gradients.losses)
    weights, direct = weigh_losses(context.algorithm, context.params, losses, batch.tasks)
    return OuterGradient(flat, losses, weights, direct)


def _gradient_of_weighed_losses(
    context: StepContext, batch: StepBatch, gradients: TaskGradients
) -> OuterGradient:
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
    weights, direct = weigh_losses(context.algorithm, context.params, losses, batch.tasks)
    return OuterGradient(gradients.weighted(weights), losses, weights, direct)


def _summed(context: StepContext, local: Tensor | None) -> Tensor:
    """The losses [K] of all workers. Raises DivergedError where one is not finite."""
    assert local is not None  # every worker has a micro-batch
    losses = context.workers.sum(local)
    refuse_infinite(context.algorithm, losses)
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
    full = context.with_batch_embeddings(batch.episodes).of_step(batch.step)
    if len(shards) > 1 or context.algorithm.learner.rematerializes:
        # What is computed later must see the weighting's state as it is now, though `weigh` changes
        # it in between.
        state = prefixed(context.algorithm.weighting.state(), "weighting")
        full = full._replace(params={**full.params, **state})
    return [partial(query_losses, full, batch._replace(episodes=shard)) for shard in shards]


def _summed_losses(micro_batches: Sequence[Callable[[], Losses]]) -> Tensor:
    """The losses [K] of all micro-batches together."""
    return torch.stack([compute().values for compute in micro_batches]).sum(0)


def weigh_losses(
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


def refuse_infinite(algorithm: Algorithm, losses: Tensor) -> None:
    for task, loss in zip(algorithm.tasks, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            raise DivergedError(f"the query loss of task '{task.name}' is {loss}")
