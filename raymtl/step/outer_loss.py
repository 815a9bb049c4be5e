"""The terms of the outer objective, each a function of one worker's episodes or of the parameters.

The objective is sum_t w_t L_t + the mean over episodes of the auxiliary terms + the penalty. L_t is
the query loss of task t, the mean over all labelled examples of all workers.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor
from torch.func import functional_call

from raymtl.encoders.dropout import dropping, of_episode, of_query
from raymtl.sharing import SharingArchitecture
from raymtl.step.algorithm import Algorithm
from raymtl.step.context import StepBatch, StepContext
from raymtl.step.execution import ExecutionConfig, over_episodes, pieces_at_once
from raymtl.step.task_gradients import Losses
from raymtl.tasks import Group, group_loss_sums, loss_sums
from raymtl.types import Batch, Episode, MetaBatch, Params, prefixed, select

EXAMPLES_AT_ONCE = 1 << 14
"""Examples, counted once for each task, that one backward pass of several tasks goes through."""


def query_losses(context: StepContext, batch: StepBatch) -> Losses:
    """Computes what this worker's episodes add to the query losses of the whole meta-batch.

    A loss is a sum over this worker's examples, divided by the number of labelled examples of all
    workers. So the losses of all workers add up to the mean over all labelled examples.
    """
    algorithm, execution = context.algorithm, context.execution
    key = algorithm.learner.graph_key(batch.step)
    function = partial(_summed_losses, algorithm, execution, batch.step, batch.groups)
    rows = []
    if execution.tracer is None or key is None:
        rows.append(function(context.params, batch.episodes))
    else:
        # A graph takes for constant what it is not given, and the weighting's state changes.
        state = prefixed(algorithm.weighting.state(), "weighting")
        new = {name: value for name, value in state.items() if name not in context.params}
        for piece in pieces_at_once(batch.episodes, execution):
            place = key, batch.groups
            rows.append(execution.tracer.run(function, place, {**context.params, **new}, piece))
    *sums, rest = [torch.stack(column).sum(0) for column in zip(*rows, strict=True)]
    order = torch.tensor(list(chain.from_iterable(batch.groups)), device=batch.counts.device)
    counts = batch.counts.clamp(min=1)[order].split([len(group) for group in batch.groups])
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    at_once = _rows_at_once(context, batch)
    return Losses(tuple(means), batch.groups, rest / batch.num_episodes, at_once)


def _rows_at_once(context: StepContext, batch: StepBatch) -> int:
    """How many gradients of tasks one backward pass computes; 1 where that would not pay.

    It does not pay for few tasks, for convolutions or for many examples. A graph that was traced,
    or that computes its steps again, is followed by one gradient at a time.
    """
    if context.execution.tracer is not None or context.algorithm.learner.rematerializes:
        return 1
    if all(len(group) == 1 for group in batch.groups):
        return 1
    if any(value.ndim > 2 for value in context.params.values()):
        return 1
    labels = (target.shape for each in batch.episodes for target in each.query.targets.values())
    examples = max(shape[0] * shape[1] for shape in labels)
    return max(1, EXAMPLES_AT_ONCE // examples)


def _summed_losses(
    algorithm: Algorithm,
    execution: ExecutionConfig,
    step: int,
    groups: Sequence[Group],
    params: Params,
    episodes: MetaBatch,
) -> tuple[Tensor, ...]:
    """The summed query losses [C] of each group over the episodes, then the sum of the rest."""

    def of_one(episode: Episode) -> tuple[tuple[Tensor, ...], Tensor]:
        drawn = of_episode(params, episode)
        adapted = algorithm.evaluated_params(drawn, episode.support, step)
        evaluated = [(weight, of_query(phi, drawn)) for weight, phi in adapted]
        sums = _multi_step_losses(algorithm, groups, evaluated, episode.query)
        _, last = evaluated[-1]
        rest = _auxiliary_terms(algorithm, last, episode.query)
        of_learner = algorithm.learner.auxiliary(algorithm.model, drawn, episode.support)
        if of_learner is not None:
            rest = rest + of_learner
        return sums, rest

    sums, rest = over_episodes(of_one, episodes, execution)
    return (*(each.sum(0) for each in sums), rest.sum())


def _multi_step_losses(
    algorithm: Algorithm,
    groups: Sequence[Group],
    evaluated: Sequence[tuple[float, Params]],
    query: Batch,
) -> tuple[Tensor, ...]:
    """The summed losses of each group, [C], over the parameters that are evaluated, by their
    weights.
    """
    totals: list[Tensor] = []
    for weight, phi in evaluated:
        predictions = algorithm.predict(phi, query.inputs)
        sums = group_loss_sums(algorithm.tasks, groups, predictions, query)
        weighted = [weight * loss for loss in sums]
        if totals:
            totals = [total + loss for total, loss in zip(totals, weighted, strict=True)]
        else:
            totals = weighted
    return tuple(totals)


def displacement(
    algorithm: Algorithm, params: Params, episode: Episode
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the summed query losses [K] of one episode after adapting to its support set, and by
    name each parameter before adapting minus the same one after it.
    """
    drawn = of_episode(params, episode)
    adapted = of_query(algorithm.adapt(drawn, episode.support), drawn)
    predictions = algorithm.predict(adapted, episode.query.inputs)
    moved = {name: params[name] - adapted[name] for name in params if name.startswith("model.")}
    return loss_sums(algorithm.tasks, predictions, episode.query), moved


def auxiliary_gradient(context: StepContext, batch: StepBatch) -> dict[str, Tensor]:
    """Returns the gradient of the mean auxiliary term at the parameters before adapting.

    Only learners that do not differentiate the query losses, such as Reptile, need it apart.
    """
    algorithm, params = context.algorithm, context.params
    local = over_episodes(
        lambda episode: _auxiliary_terms(
            algorithm, of_query(params, of_episode(params, episode)), episode.query
        ),
        batch.episodes,
        context.execution,
    )
    if not local.requires_grad:  # the architecture decides this, so it is the same on all workers
        return {}
    own = {name: value for name, value in params.items() if name.startswith("model.")}
    local_gradients = _gradients(local.sum() / batch.num_episodes, own)
    return {name: context.workers.sum(gradient) for name, gradient in local_gradients.items()}


def penalty_gradient(algorithm: Algorithm, params: Params) -> dict[str, Tensor]:
    """Returns the gradient of the architecture's penalty on its parameters, by name."""
    own = select(params, "model")
    penalty = algorithm.model.penalty(own)
    if not penalty.requires_grad:
        return {}
    return prefixed(_gradients(penalty, own), "model")


def _auxiliary_terms(algorithm: Algorithm, params: Params, query: Batch) -> Tensor:
    """The sum of the architecture's auxiliary terms on one query set, a scalar."""
    zero = next(iter(params.values())).new_zeros(())
    if type(algorithm.model).auxiliary is SharingArchitecture.auxiliary:
        return zero
    with dropping(params):
        own = select(params, "model")
        terms = functional_call(algorithm.model, own, (query.inputs,), {"output": "auxiliary"})
    return sum(terms.values(), start=zero)


def _gradients(value: Tensor, params: Params) -> dict[str, Tensor]:
    """The gradient of a scalar for each of the parameters that it depends on."""
    gradients = torch.autograd.grad(value, list(params.values()), allow_unused=True)
    pairs = zip(params, gradients, strict=True)
    return {name: gradient for name, gradient in pairs if gradient is not None}
