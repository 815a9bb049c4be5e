"""One outer step, pure torch: query losses -> weights -> meta-gradient, exact on any number of workers."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from raymtl.collective import Losses, TaskGradients, Workers
from raymtl.encoders.norm import (
    BatchStatistics,
    PerStepNorm,
    after_steps,
    recorded_statistics,
    refuse_running_statistics,
    statistics_of,
)
from raymtl.learners import BATCH, MetaLearner
from raymtl.learners.base import STEPS
from raymtl.sharing import SharingArchitecture
from raymtl.tasks import label_counts, loss_sums, task_loss_sums
from raymtl.types import Batch, DivergedError, Episode, MetaBatch, Params, Task, prefixed, select
from raymtl.weighting import Jacobian, LossWeighting

Precision = Literal["float32", "bfloat16"]
TaskAxis = Literal["vmap", "loop"]


class Problem(NamedTuple):
    """The three axes on a set of tasks: any sharing architecture, any weighting, any learner.

    One thread at a time: a functional call puts the parameters that it is given into the module while it runs.
    """

    tasks: tuple[Task, ...]
    model: SharingArchitecture
    weighting: LossWeighting
    learner: MetaLearner
    seed: int = 0
    """Of the learner's own initial parameters; the model has its own already."""

    def init_params(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Fresh leaf tensors under the prefixes `model.`, `weighting.` and `learner.`; buffers move to the device.

        Raises UserError for a model with running statistics.
        """
        refuse_running_statistics(self.model.parts())
        self.model.to(device)
        self.weighting.to(device)
        model = dict(self.model.named_parameters())
        params = {
            **prefixed(model, "model"),
            **prefixed(dict(self.weighting.named_parameters()), "weighting"),
            **prefixed(self.learner.init_params(model, torch.Generator().manual_seed(self.seed)), "learner"),
        }
        return {name: value.detach().clone().to(device).requires_grad_() for name, value in params.items()}

    def objective(self, params: Params, predictions: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The inner loop's loss, a scalar: the weighted sum of each task's mean over its labelled examples."""
        counts = label_counts(self.tasks, batch)
        losses = loss_sums(self.tasks, predictions, batch) / counts.clamp(min=1)
        weights: Tensor = functional_call(self.weighting, select(params, "weighting"), ())
        # A copy: the outer step may move the state in place before the graph through here is followed.
        return weights.to(losses, copy=True) @ losses

    def adapt(self, params: Params, support: Batch, steps: int | None = None) -> Params:
        """Parameters fitted to one support set."""
        adapted = self.learner.adapt(self.model, params, support, self.objective, steps)
        return self.normalised(adapted, support, self.learner.num_steps if steps is None else steps)

    def adaptations(self, params: Params, support: Batch, step: int) -> Sequence[tuple[float, Params]]:
        """What the outer step `step` judges in training, each with the weight of its query loss."""
        judged = self.learner.adaptations(self.model, params, support, self.objective, step)
        return [
            (weight, self.normalised(phi, support, phi.get(STEPS, self.learner.num_steps))) for weight, phi in judged
        ]

    def normalised(self, params: Params, support: Batch, steps: int | Tensor = 0) -> Params:
        """The parameters after `steps` inner steps, and beside them what a query is normalised by, if by anything.

        That is what the batch norms make of this support set, and the number of steps where they depend on it.
        """
        found: dict[str, Tensor] = {}
        if any(isinstance(norm, PerStepNorm) for norm in self._norms):
            found["support.steps"] = torch.as_tensor(steps, device=next(iter(params.values())).device)
        if self._normalises_by_support:
            with after_steps(steps), recorded_statistics() as maps:
                self.learner.predict(self.model, params, support.inputs)
            found |= {f"support.norms.{index}": each for index, each in enumerate(maps)}
        return {**params, **found} if found else params

    @property
    def uses_support(self) -> bool:
        """Whether what is predicted of an example depends on the support set, or on the other queries."""
        return self.learner.uses_support or bool(self._norms)

    def predict(self, params: Params, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predictions of every task from parameters that are adapted, or at least `normalised`."""
        with after_steps(params.get("support.steps", 0)):
            if not self._normalises_by_support:
                return self.learner.predict(self.model, params, inputs)
            maps = select(params, "support.norms")
            if not maps:
                raise ValueError("expected parameters that know a support set: adapt or normalise them first.")
            with statistics_of([maps[str(index)] for index in range(len(maps))]):
                return self.learner.predict(self.model, params, inputs)

    @property
    def _norms(self) -> list[BatchStatistics]:
        return [part for part in self.model.parts() if isinstance(part, BatchStatistics)]

    @property
    def _normalises_by_support(self) -> bool:
        return any(not norm.transductive for norm in self._norms)

    @property
    def transductive(self) -> bool:
        """Whether what is predicted of a query depends on the other queries."""
        return any(norm.transductive for norm in self._norms)

    def private(self, params: Params) -> frozenset[str]:
        """The parameters that are one task's own: all of the model that the architecture does not share.

        Heads are private by this rule even where an inner loop over all tasks couples them.
        """
        shared = {f"model.{name}" for name in self.model.shared}
        return frozenset(name for name in params if name.startswith("model.") and name not in shared)


class HowToRun(NamedTuple):
    """How the episodes of a batch are run; every way gives the same numbers up to rounding.

    `chunk` is how many episodes vmap takes at once, all by default. A worker's episodes are run in `passes` passes,
    each with its own graph: with more of them a step takes less memory and, where the losses must be known before
    their weights are, a forward pass more.
    """

    task_axis: TaskAxis = "vmap"
    chunk: int | None = None
    precision: Precision = "float32"
    passes: int = 1


class MetaGradient(NamedTuple):
    """What one outer step computes, equal on all workers."""

    grads: dict[str, Tensor]
    losses: Tensor
    """Query loss of each task, [K], the mean over all labelled examples of all workers; nan where there is none."""
    weights: Tensor
    """Weight of each task's loss, or for gradient methods of each task's gradient, [K]; 0 where there is no label."""
    tasks: Tensor
    """Which tasks have labels in this meta-batch: indices, in ascending order."""


def over_episodes(function: Callable[[Episode], Any], episodes: MetaBatch, how: HowToRun) -> Any:
    """`function` of every episode, its results stacked, [E, ...]; those of several stacks follow each other."""
    results = [_over_stack(function, stack, how) for stack in stacks(episodes)]
    return results[0] if len(results) == 1 else tree_map(lambda *parts: torch.cat(parts), *results)


def _over_stack(function: Callable[[Episode], Any], episodes: Episode, how: HowToRun) -> Any:
    device = next(iter(episodes.query.targets.values())).device
    with torch.autocast(device.type, torch.bfloat16, enabled=how.precision == "bfloat16"):
        if how.task_axis == "vmap":
            return vmap(function, chunk_size=how.chunk)(episodes)
        results = [function(tree_map(lambda leaf, i=i: leaf[i], episodes)) for i in range(_number([episodes]))]
        return tree_map(lambda *leaves: torch.stack(leaves), *results)


def stacks(episodes: MetaBatch) -> Sequence[Episode]:
    """The stacks that a meta-batch consists of."""
    return [episodes] if isinstance(episodes, Episode) else episodes


def meta_gradient(
    problem: Problem,
    params: Mapping[str, Tensor],
    episodes: MetaBatch,
    workers: Workers = Workers(),  # noqa: B008  (immutable)
    how: HowToRun = HowToRun(),  # noqa: B008
    step: int = 0,
) -> MetaGradient:
    """The gradient of the outer objective with respect to every parameter, over the episodes of all workers.

    `episodes` are this worker's share, whatever its size, in one stack [E, ...] or, where they differ in shape, in
    several: vmap runs each, and the result is that of one after the other. The loss of a task is the sum over all
    workers' labelled examples divided by their number, so ragged shares and missing labels weigh by count; a task
    without any label takes no part; `step` is the outer step, which some learners anneal by. Per-task gradients are
    summed over workers before the weighting sees them. Raises DivergedError where a loss is not finite.
    """
    private = problem.private(params)
    names = sorted(params, key=lambda name: name in private)  # shared ones first; sorting is stable
    counts, num_episodes = _totals(problem, episodes, workers)
    batch = _MetaBatch(stacks(episodes), counts, num_episodes, step)
    if problem.learner.follows_query_gradient:
        moved = _down_the_query_losses(problem, params, batch, names, len(private), workers, how)
    else:
        moved = _to_the_adapted(problem, params, batch, names, workers, how)
    flat, losses, weights, direct = moved

    grads = {
        name: part.view_as(params[name])
        for name, part in zip(names, flat.split([params[name].numel() for name in names]), strict=True)
    }
    for name, gradient in [*direct.items(), *_penalty_gradient(problem, params).items()]:
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


class _Moved(NamedTuple):
    """What a step follows: a flat gradient in the order of the names, and by name what belongs to no task's loss.

    `losses` are the query losses [K], `weights` those of the tasks that have labels.
    """

    flat: Tensor
    losses: Tensor
    weights: Tensor
    direct: dict[str, Tensor]


def _down_the_query_losses(
    problem: Problem,
    params: Params,
    batch: _MetaBatch,
    names: Sequence[str],
    num_private: int,
    workers: Workers,
    how: HowToRun,
) -> _Moved:
    """The gradient of the weighted query losses; the last `num_private` of `names` are one task's own."""
    leaves = [params[name] for name in names]
    num_shared = len(names) - num_private
    parts = _parts(batch.episodes, how.passes)
    given = _with_the_batch(problem, params, batch.episodes, workers, how)
    if len(parts) > 1 or problem.learner.recomputes:
        # Whatever is computed later sees the weighting's state as it is now, though `weigh` moves it in between.
        given = {**given, **prefixed(problem.weighting.state(), "weighting")}
    passes: list[Callable[[], Losses]] = [
        partial(_losses, problem, given, batch._replace(episodes=part), how) for part in parts
    ]
    if len(passes) == 1:
        only = passes[0]()
        passes, values = [lambda: only], only.tasks
    else:
        with torch.no_grad():
            values = tuple(torch.stack(column).sum() for column in zip(*(p().tasks for p in passes), strict=True))
    losses = workers.sum(torch.stack(values).detach())
    gradients = TaskGradients(passes, batch.tasks.tolist(), leaves[:num_shared], leaves[num_shared:], workers)
    weights, direct = _weigh(problem, params, losses, gradients, batch.tasks)
    return _Moved(
        gradients.combine(weights) if gradients.computed else gradients.weighted(weights), losses, weights, direct
    )


def _with_the_batch(problem: Problem, params: Params, episodes: MetaBatch, workers: Workers, how: HowToRun) -> Params:
    """The parameters, and beside them what the learner knows the tasks of the whole meta-batch by, if it asks."""
    if not problem.learner.sees_the_batch:
        return params
    with torch.no_grad():
        own = over_episodes(lambda e: problem.learner.embed(problem.model, params, e.support), episodes, how)
        return {**params, BATCH: workers.join(own)}


def _to_the_adapted(
    problem: Problem, params: Params, batch: _MetaBatch, names: Sequence[str], workers: Workers, how: HowToRun
) -> _Moved:
    """The mean displacement of the parameters by adapting, for learners without a query gradient."""
    with torch.no_grad():
        sums, moved = over_episodes(lambda episode: _displacement(problem, params, episode), batch.episodes, how)
        flat = torch.cat(
            [(moved[name].sum(0) if name in moved else torch.zeros_like(params[name])).flatten() for name in names]
        )
        flat = workers.sum(flat / batch.num_episodes)
        losses = workers.sum(sums.sum(0) / batch.counts.clamp(min=1))
    weights, direct = _weigh(problem, params, losses, None, batch.tasks)
    auxiliary = _auxiliary_gradient(problem, params, batch, how, workers)
    return _Moved(flat, losses, weights, direct | auxiliary)


def look_back(
    problem: Problem,
    params: Params,
    episodes: MetaBatch,
    meta: MetaGradient,
    workers: Workers = Workers(),  # noqa: B008
    how: HowToRun = HowToRun(),  # noqa: B008
    step: int = 0,
) -> None:
    """Shows the weighting what the move did to the losses of its own batch: one adaptation and one forward pass.

    `params` are those after the move that followed `meta`. Raises DivergedError where a loss is not finite.
    """
    counts, num_episodes = _totals(problem, episodes, workers)
    with torch.no_grad():
        given = _with_the_batch(problem, params, episodes, workers, how)
        parts = (_MetaBatch(part, counts, num_episodes, step) for part in _parts(stacks(episodes), how.passes))
        sums = [_losses(problem, given, part, how) for part in parts]
        after = workers.sum(torch.stack([torch.stack(losses.tasks) for losses in sums]).sum(0))
    _refuse_infinite(problem, after)
    problem.weighting.observe(meta.losses[meta.tasks], after[meta.tasks], meta.tasks)


def _totals(problem: Problem, episodes: MetaBatch, workers: Workers) -> tuple[Tensor, Tensor]:
    """Labelled query examples of each task, [K], and episodes, a scalar, of all workers."""
    local = over_episodes(lambda episode: label_counts(problem.tasks, episode.query), episodes, HowToRun()).sum(0)
    totals = workers.sum(torch.cat([local, local.new_tensor([_number(stacks(episodes))])]))
    return totals[:-1], totals[-1]


def _number(episodes: Sequence[Episode]) -> int:
    return sum(len(next(iter(stack.query.targets.values()))) for stack in episodes)


def _parts(episodes: Sequence[Episode], passes: int) -> list[Sequence[Episode]]:
    """Each stack in `passes` shares, part i of the i-th ones; fewer parts where no stack has as many episodes."""
    if passes == 1:
        return [episodes]
    parts: list[Sequence[Episode]] = []
    for index in range(passes):
        shares = [(stack, Workers(index, passes).share(_number([stack]))) for stack in episodes]
        part = [tree_map(lambda leaf, s=s: leaf[s.start : s.stop], stack) for stack, s in shares if len(s)]
        parts += [part] if part else []
    return parts


def _losses(problem: Problem, params: Params, batch: _MetaBatch, how: HowToRun) -> Losses:
    """What these episodes contribute to the losses of the whole meta-batch."""

    def of_one(episode: Episode) -> tuple[tuple[Tensor, ...], Tensor]:
        query = episode.query
        judged = problem.adaptations(params, episode.support, batch.step)
        parts = [
            [weight * loss for loss in task_loss_sums(problem.tasks, problem.predict(phi, query.inputs), query)]
            for weight, phi in judged
        ]
        sums = tuple(sum(column[1:], start=column[0]) for column in zip(*parts, strict=True))
        _, adapted = judged[-1]
        rest = _auxiliary(problem, adapted, query)
        own = problem.learner.auxiliary(problem.model, params, episode.support)
        return sums, rest if own is None else rest + own

    sums, rest = over_episodes(of_one, batch.episodes, how)
    means = tuple(total.sum() / count for total, count in zip(sums, batch.counts.clamp(min=1).unbind(), strict=True))
    return Losses(means, rest.sum() / batch.num_episodes)


def _auxiliary(problem: Problem, params: Params, query: Batch) -> Tensor:
    """The sum of the architecture's auxiliary terms on one query set, a scalar."""
    terms = functional_call(problem.model, select(params, "model"), (query.inputs,), {"output": "auxiliary"})
    return sum(terms.values(), start=next(iter(params.values())).new_zeros(()))


def _auxiliary_gradient(
    problem: Problem, params: Params, batch: _MetaBatch, how: HowToRun, workers: Workers
) -> dict[str, Tensor]:
    """The gradient of the mean auxiliary term at the parameters as they are, for learners without a query gradient."""
    local = over_episodes(lambda episode: _auxiliary(problem, params, episode.query), batch.episodes, how)
    if not local.requires_grad:  # a matter of the architecture, so the same on all workers
        return {}
    names = [name for name in params if name.startswith("model.")]
    grads = torch.autograd.grad(local.sum() / batch.num_episodes, [params[name] for name in names], allow_unused=True)
    return {name: workers.sum(gradient) for name, gradient in zip(names, grads, strict=True) if gradient is not None}


def _displacement(problem: Problem, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
    adapted = problem.adapt(params, episode.support)
    sums = loss_sums(problem.tasks, problem.predict(adapted, episode.query.inputs), episode.query)
    return sums, {name: params[name] - adapted[name] for name in params if name.startswith("model.")}


def _weigh(
    problem: Problem, params: Params, losses: Tensor, jacobian: Jacobian | None, tasks: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights of `tasks` at these losses, and the gradient of the total for the weighting's own parameters."""
    _refuse_infinite(problem, losses)
    if not len(tasks):
        return losses[:0], {}
    present = losses[tasks].detach().requires_grad_()
    own = select(params, "weighting")
    weighed = functional_call(problem.weighting, own, (present, jacobian, tasks))
    if weighed.ndim:
        return weighed.detach(), {}
    weights, *grads = torch.autograd.grad(weighed, [present, *own.values()], allow_unused=True)
    return weights, prefixed({name: g for name, g in zip(own, grads, strict=True) if g is not None}, "weighting")


def _refuse_infinite(problem: Problem, losses: Tensor) -> None:
    for task, loss in zip(problem.tasks, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            raise DivergedError(f"the query loss of task '{task.name}' is {loss}")


def _penalty_gradient(problem: Problem, params: Params) -> dict[str, Tensor]:
    own = select(params, "model")
    penalty = problem.model.penalty(own)
    if not penalty.requires_grad:
        return {}
    grads = torch.autograd.grad(penalty, list(own.values()), allow_unused=True)
    return prefixed({name: g for name, g in zip(own, grads, strict=True) if g is not None}, "model")
