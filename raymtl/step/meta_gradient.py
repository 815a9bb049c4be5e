"""One outer step, pure torch: query losses -> weights -> meta-gradient, exact on any number of
workers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from raymtl.learners import BATCH
from raymtl.step.algorithm import Algorithm
from raymtl.step.task_gradients import Losses, TaskGradients
from raymtl.step.workers import Workers
from raymtl.tasks import label_counts, loss_sums, task_loss_sums
from raymtl.types import Batch, DivergedError, Episode, MetaBatch, Params, prefixed, select
from raymtl.weighting import GradientWeighting

Precision = Literal["float32", "bfloat16"]


TaskAxis = Literal["vmap", "loop"]


class ExecutionConfig(NamedTuple):
    """How the episodes of a batch are run; every way gives the same numbers up to rounding.

    `chunk` is how many episodes vmap takes at once, all by default. A worker's episodes are run in
    `micro_batches` passes, each with its own graph: with more of them a step takes less memory and, where
    the losses must be known before their weights are, a forward pass more.
    """

    task_axis: TaskAxis = "vmap"
    chunk: int | None = None
    precision: Precision = "float32"
    micro_batches: int = 1


class MetaGradient(NamedTuple):
    """What one outer step computes, equal on all workers."""

    grads: dict[str, Tensor]
    losses: Tensor
    """Query loss of each task, [K], the mean over all labelled examples of all workers; nan where
    there is none.
    """
    weights: Tensor
    """Weight of each task's loss, or for gradient methods of each task's gradient, [K]; 0 where
    there is no label.
    """
    tasks: Tensor
    """Which tasks have labels in this meta-batch: indices, in ascending order."""


def over_episodes(
    function: Callable[[Episode], Any], episodes: MetaBatch, execution: ExecutionConfig
) -> Any:
    """`function` of every episode, its results stacked, [E, ...]; those of several stacks follow
    each other.
    """
    results = [_over_stack(function, stack, execution) for stack in stacks(episodes)]
    if len(results) == 1:
        return results[0]
    return tree_map(lambda *parts: torch.cat(parts), *results)


def _over_stack(
    function: Callable[[Episode], Any], episodes: Episode, execution: ExecutionConfig
) -> Any:
    device = next(iter(episodes.query.targets.values())).device
    with torch.autocast(device.type, torch.bfloat16, enabled=execution.precision == "bfloat16"):
        if execution.task_axis == "vmap":
            return vmap(function, chunk_size=execution.chunk)(episodes)
        results = [
            function(tree_map(lambda leaf, i=i: leaf[i], episodes))
            for i in range(_number([episodes]))
        ]
        return tree_map(lambda *leaves: torch.stack(leaves), *results)


def stacks(episodes: MetaBatch) -> Sequence[Episode]:
    """The stacks that a meta-batch consists of."""
    if isinstance(episodes, Episode):
        return [episodes]
    return episodes


def meta_gradient(
    algorithm: Algorithm,
    params: Mapping[str, Tensor],
    episodes: MetaBatch,
    workers: Workers = Workers(),
    execution: ExecutionConfig = ExecutionConfig(),
    step: int = 0,
) -> MetaGradient:
    """The gradient of the outer objective with respect to every parameter, over the episodes of all
    workers.

    `episodes` are this worker's share, whatever its size, in one stack [E, ...] or, where they
    differ in shape, in several: vmap runs each, and the result is that of one after the other. The
    loss of a task is the sum over all workers' labelled examples divided by their number, so ragged
    shares and missing labels weigh by count; a task without any label takes no part; `step` is the
    outer step, which some learners anneal by. Per-task gradients are summed over workers before the
    weighting sees them. Raises DivergedError where a loss is not finite.
    """
    private = algorithm.private(params)
    names = sorted(params, key=lambda name: name in private)  # shared ones first; sorting is stable
    counts, num_episodes = _totals(algorithm, episodes, workers)
    batch = _MetaBatch(stacks(episodes), counts, num_episodes, step)
    if algorithm.learner.uses_query_gradient:
        moved = _down_the_query_losses(
            algorithm, params, batch, names, len(private), workers, execution
        )
    else:
        moved = _to_the_adapted(algorithm, params, batch, names, workers, execution)
    flat, losses, weights, direct = moved

    grads = {
        name: part.view_as(params[name])
        for name, part in zip(
            names, flat.split([params[name].numel() for name in names]), strict=True
        )
    }
    for name, gradient in [*direct.items(), *_penalty_gradient(algorithm, params).items()]:
        grads[name] = grads[name] + gradient
    return MetaGradient(
        grads,
        torch.where(counts > 0, losses, torch.nan),
        torch.zeros_like(losses).index_copy(0, batch.tasks, weights.to(losses)),
        batch.tasks,
    )


class _MetaBatch(NamedTuple):
    """This worker's episodes, and what is known of those of all workers."""

    episodes: Sequence[Episode]
    counts: Tensor
    """Labelled query examples of each task, [K]."""
    num_episodes: Tensor
    step: int

    @property
    def tasks(self) -> Tensor:
        """Which tasks have labels: indices, in ascending order."""
        return self.counts.nonzero().flatten()


class _OuterGradient(NamedTuple):
    """What a step follows: a flat gradient in the order of the names, and by name what belongs to
    no task's loss.

    `losses` are the query losses [K], `weights` those of the tasks that have labels.
    """

    flat: Tensor
    losses: Tensor
    weights: Tensor
    direct: dict[str, Tensor]


def _down_the_query_losses(
    algorithm: Algorithm,
    params: Params,
    batch: _MetaBatch,
    names: Sequence[str],
    num_private: int,
    workers: Workers,
    execution: ExecutionConfig,
) -> _OuterGradient:
    """The gradient of the weighted query losses; the last `num_private` of `names` are one task's
    own.
    """
    leaves = [params[name] for name in names]
    num_shared = len(names) - num_private
    parts = _parts(batch.episodes, execution.micro_batches)
    given = _with_the_batch(algorithm, params, batch.episodes, workers, execution)
    if len(parts) > 1 or algorithm.learner.rematerializes:
        # Whatever is computed later sees the weighting's state as it is now, though `weigh` moves
        # it in between.
        given = {**given, **prefixed(algorithm.weighting.state(), "weighting")}
    micro_batches: list[Callable[[], Losses]] = [
        partial(_losses, algorithm, given, batch._replace(episodes=part), execution)
        for part in parts
    ]
    if len(micro_batches) == 1:
        only = micro_batches[0]()
        micro_batches, values = [lambda: only], only.tasks
    else:
        with torch.no_grad():
            values = tuple(
                torch.stack(column).sum()
                for column in zip(*(p().tasks for p in micro_batches), strict=True)
            )
    losses = workers.sum(torch.stack(values).detach())
    gradients = TaskGradients(
        micro_batches, batch.tasks.tolist(), leaves[:num_shared], leaves[num_shared:], workers
    )
    _refuse_infinite(algorithm, losses)
    if isinstance(algorithm.weighting, GradientWeighting) and len(batch.tasks):
        weights = algorithm.weighting.weigh(losses[batch.tasks], gradients, batch.tasks)
        return _OuterGradient(gradients.combine(weights), losses, weights, {})
    weights, direct = _weigh_losses(algorithm, params, losses, batch.tasks)
    return _OuterGradient(gradients.weighted(weights), losses, weights, direct)


def _with_the_batch(
    algorithm: Algorithm,
    params: Params,
    episodes: MetaBatch,
    workers: Workers,
    execution: ExecutionConfig,
) -> Params:
    """The parameters, and beside them what the learner knows the tasks of the whole meta-batch by,
    if it asks.
    """
    if not algorithm.learner.uses_batch_context:
        return params
    with torch.no_grad():
        own = over_episodes(
            lambda e: algorithm.learner.embed(algorithm.model, params, e.support),
            episodes,
            execution,
        )
        return {**params, BATCH: workers.join(own)}


def _to_the_adapted(
    algorithm: Algorithm,
    params: Params,
    batch: _MetaBatch,
    names: Sequence[str],
    workers: Workers,
    execution: ExecutionConfig,
) -> _OuterGradient:
    """The mean displacement of the parameters by adapting, for learners without a query gradient."""
    with torch.no_grad():
        sums, moved = over_episodes(
            lambda episode: _displacement(algorithm, params, episode), batch.episodes, execution
        )
        flat = torch.cat(
            [
                (moved[name].sum(0) if name in moved else torch.zeros_like(params[name])).flatten()
                for name in names
            ]
        )
        flat = workers.sum(flat / batch.num_episodes)
        losses = workers.sum(sums.sum(0) / batch.counts.clamp(min=1))
    _refuse_infinite(algorithm, losses)
    weights, direct = _weigh_losses(algorithm, params, losses, batch.tasks)
    auxiliary = _auxiliary_gradient(algorithm, params, batch, execution, workers)
    return _OuterGradient(flat, losses, weights, direct | auxiliary)


def update_after_step(
    algorithm: Algorithm,
    params: Params,
    episodes: MetaBatch,
    meta: MetaGradient,
    workers: Workers = Workers(),
    execution: ExecutionConfig = ExecutionConfig(),
    step: int = 0,
) -> None:
    """Shows the weighting what the move did to the losses of its own batch: one adaptation and one
    forward pass.

    `params` are those after the move that followed `meta`. Raises DivergedError where a loss is not
    finite.
    """
    counts, num_episodes = _totals(algorithm, episodes, workers)
    with torch.no_grad():
        given = _with_the_batch(algorithm, params, episodes, workers, execution)
        parts = (
            _MetaBatch(part, counts, num_episodes, step)
            for part in _parts(stacks(episodes), execution.micro_batches)
        )
        sums = [_losses(algorithm, given, part, execution) for part in parts]
        after = workers.sum(torch.stack([torch.stack(losses.tasks) for losses in sums]).sum(0))
    _refuse_infinite(algorithm, after)
    algorithm.weighting.update_after_step(meta.losses[meta.tasks], after[meta.tasks], meta.tasks)


def _totals(algorithm: Algorithm, episodes: MetaBatch, workers: Workers) -> tuple[Tensor, Tensor]:
    """Labelled query examples of each task, [K], and episodes, a scalar, of all workers."""
    local = over_episodes(
        lambda episode: label_counts(algorithm.tasks, episode.query), episodes, ExecutionConfig()
    ).sum(0)
    totals = workers.sum(torch.cat([local, local.new_tensor([_number(stacks(episodes))])]))
    return totals[:-1], totals[-1]


def _number(episodes: Sequence[Episode]) -> int:
    return sum(len(next(iter(stack.query.targets.values()))) for stack in episodes)


def _parts(episodes: Sequence[Episode], micro_batches: int) -> list[Sequence[Episode]]:
    """Each stack in `micro_batches` shares, part i of the i-th ones; fewer parts where no stack has as
    many episodes.
    """
    if micro_batches == 1:
        return [episodes]
    parts: list[Sequence[Episode]] = []
    for index in range(micro_batches):
        shares = [
            (stack, Workers(index, micro_batches).share(_number([stack]))) for stack in episodes
        ]
        part = [
            tree_map(lambda leaf, s=s: leaf[s.start : s.stop], stack)
            for stack, s in shares
            if len(s)
        ]
        parts += [part] if part else []
    return parts


def _losses(
    algorithm: Algorithm, params: Params, batch: _MetaBatch, execution: ExecutionConfig
) -> Losses:
    """What these episodes contribute to the losses of the whole meta-batch."""

    def of_one(episode: Episode) -> tuple[tuple[Tensor, ...], Tensor]:
        query = episode.query
        judged = algorithm.adaptations(params, episode.support, batch.step)
        parts = [
            [
                weight * loss
                for loss in task_loss_sums(
                    algorithm.tasks, algorithm.predict(phi, query.inputs), query
                )
            ]
            for weight, phi in judged
        ]
        sums = tuple(sum(column[1:], start=column[0]) for column in zip(*parts, strict=True))
        _, adapted = judged[-1]
        rest = _auxiliary(algorithm, adapted, query)
        own = algorithm.learner.auxiliary(algorithm.model, params, episode.support)
        return sums, rest if own is None else rest + own

    sums, rest = over_episodes(of_one, batch.episodes, execution)
    means = tuple(
        total.sum() / count
        for total, count in zip(sums, batch.counts.clamp(min=1).unbind(), strict=True)
    )
    return Losses(means, rest.sum() / batch.num_episodes)


def _auxiliary(algorithm: Algorithm, params: Params, query: Batch) -> Tensor:
    """The sum of the architecture's auxiliary terms on one query set, a scalar."""
    terms = functional_call(
        algorithm.model, select(params, "model"), (query.inputs,), {"output": "auxiliary"}
    )
    return sum(terms.values(), start=next(iter(params.values())).new_zeros(()))


def _auxiliary_gradient(
    algorithm: Algorithm,
    params: Params,
    batch: _MetaBatch,
    execution: ExecutionConfig,
    workers: Workers,
) -> dict[str, Tensor]:
    """The gradient of the mean auxiliary term at the parameters as they are, for learners without a
    query gradient.
    """
    local = over_episodes(
        lambda episode: _auxiliary(algorithm, params, episode.query), batch.episodes, execution
    )
    if not local.requires_grad:  # a matter of the architecture, so the same on all workers
        return {}
    names = [name for name in params if name.startswith("model.")]
    grads = torch.autograd.grad(
        local.sum() / batch.num_episodes, [params[name] for name in names], allow_unused=True
    )
    return {
        name: workers.sum(gradient)
        for name, gradient in zip(names, grads, strict=True)
        if gradient is not None
    }


def _displacement(
    algorithm: Algorithm, params: Params, episode: Episode
) -> tuple[Tensor, dict[str, Tensor]]:
    adapted = algorithm.adapt(params, episode.support)
    sums = loss_sums(
        algorithm.tasks, algorithm.predict(adapted, episode.query.inputs), episode.query
    )
    return sums, {
        name: params[name] - adapted[name] for name in params if name.startswith("model.")
    }


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
    return weights, prefixed(
        {name: g for name, g in zip(own, grads, strict=True) if g is not None}, "weighting"
    )


def _refuse_infinite(algorithm: Algorithm, losses: Tensor) -> None:
    for task, loss in zip(algorithm.tasks, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            raise DivergedError(f"the query loss of task '{task.name}' is {loss}")


def _penalty_gradient(algorithm: Algorithm, params: Params) -> dict[str, Tensor]:
    own = select(params, "model")
    penalty = algorithm.model.penalty(own)
    if not penalty.requires_grad:
        return {}
    grads = torch.autograd.grad(penalty, list(own.values()), allow_unused=True)
    return prefixed({name: g for name, g in zip(own, grads, strict=True) if g is not None}, "model")
