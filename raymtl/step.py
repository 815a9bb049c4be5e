"""One outer step, pure torch: query losses -> weights -> meta-gradient, exact on any number of workers."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from raymtl.collective import TaskGradients, Workers
from raymtl.learners import MetaLearner
from raymtl.sharing import SharingArchitecture
from raymtl.tasks import label_counts, loss_sums
from raymtl.types import Batch, DivergedError, Episode, Params, Task, prefixed, select
from raymtl.weighting import LossWeighting

Precision = Literal["float32", "bfloat16"]
TaskAxis = Literal["vmap", "loop"]


class Problem(NamedTuple):
    """The three axes on a set of tasks: any sharing architecture, any weighting, any learner."""

    tasks: tuple[Task, ...]
    model: SharingArchitecture
    weighting: LossWeighting
    learner: MetaLearner

    def init_params(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Fresh leaf tensors under the prefixes `model.`, `weighting.` and `learner.`."""
        model = dict(self.model.named_parameters())
        params = {
            **prefixed(model, "model"),
            **prefixed(dict(self.weighting.named_parameters()), "weighting"),
            **prefixed(self.learner.init_params(model), "learner"),
        }
        return {name: value.detach().clone().to(device).requires_grad_() for name, value in params.items()}

    def objective(self, params: Params, predictions: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The inner loop's loss, a scalar: the weighting applied to each task's mean over its labelled examples."""
        counts = label_counts(self.tasks, batch)
        losses = loss_sums(self.tasks, predictions, batch) / counts.clamp(min=1)
        weighed = functional_call(self.weighting, select(params, "weighting"), (losses,))
        return weighed if weighed.ndim == 0 else weighed @ losses

    def adapt(self, params: Params, support: Batch, steps: int | None = None) -> Params:
        """Parameters fitted to one support set."""
        return self.learner.adapt(self.model, params, support, self.objective, steps)

    def predict(self, params: Params, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predictions of every task."""
        return self.learner.predict(self.model, params, inputs)

    def is_shared(self, name: str) -> bool:
        """Whether the parameter is shared by the architecture, or belongs to no task at all.

        Heads are private by this rule even where an inner loop over all tasks couples them.
        """
        prefix, _, rest = name.partition(".")
        return prefix != "model" or rest in self.model.shared


class HowToRun(NamedTuple):
    """How the episodes of a batch are run; every way gives the same numbers up to rounding.

    `chunk` is how many episodes vmap takes at once, all by default.
    """

    task_axis: TaskAxis = "vmap"
    chunk: int | None = None
    precision: Precision = "float32"


class MetaGradient(NamedTuple):
    """What one outer step computes, equal on all workers."""

    grads: dict[str, Tensor]
    losses: Tensor
    """Query loss of each task, [K], the mean over all labelled examples of all workers."""
    weights: Tensor
    """Weight of each task's loss, or for gradient methods of each task's gradient, [K]."""


def over_episodes(function: Callable[[Episode], Any], episodes: Episode, how: HowToRun) -> Any:
    """`function` of every episode, its results stacked: [E, ...] -> [E, ...]."""
    device = next(iter(episodes.query.targets.values())).device
    with torch.autocast(device.type, torch.bfloat16, enabled=how.precision == "bfloat16"):
        if how.task_axis == "vmap":
            return vmap(function, chunk_size=how.chunk)(episodes)
        number = len(next(iter(episodes.query.targets.values())))
        results = [function(tree_map(lambda leaf, i=index: leaf[i], episodes)) for index in range(number)]
        return tree_map(lambda *leaves: torch.stack(leaves), *results)


def meta_gradient(
    problem: Problem,
    params: Mapping[str, Tensor],
    episodes: Episode,
    workers: Workers = Workers(),  # noqa: B008  (immutable)
    how: HowToRun = HowToRun(),  # noqa: B008
) -> MetaGradient:
    """The gradient of the outer objective with respect to every parameter, over the episodes of all workers.

    `episodes` [E, ...] are this worker's share, whatever its size. The loss of a task is the sum over all workers'
    labelled examples divided by their number, so ragged shares and missing labels weigh by count. Per-task gradients
    are summed over workers before the weighting sees them. Raises DivergedError where a loss is not finite.
    """
    names = sorted(params, key=lambda name: not problem.is_shared(name))  # shared ones first; sorting is stable
    leaves = [params[name] for name in names]
    num_shared = sum(problem.is_shared(name) for name in names)

    number = len(next(iter(episodes.query.targets.values())))
    local_counts = label_counts(problem.tasks, episodes.query)
    totals = workers.sum(torch.cat([local_counts, local_counts.new_tensor([number])]))
    counts, num_episodes = totals[:-1].clamp(min=1), totals[-1]

    if problem.learner.follows_query_gradient:
        local = over_episodes(lambda episode: _query_loss_sums(problem, params, episode), episodes, how)
        gradients = TaskGradients(local.sum(0) / counts, leaves[:num_shared], leaves[num_shared:], workers)
        losses = workers.sum(gradients.losses.detach())
        weights, direct = _weigh(problem, params, losses, gradients.gramian)
        flat = gradients.combine(weights) if gradients.computed else gradients.weighted(weights)
    else:
        with torch.no_grad():
            sums, moved = over_episodes(lambda episode: _displacement(problem, params, episode), episodes, how)
            flat = torch.cat(
                [(moved[name].sum(0) if name in moved else torch.zeros_like(params[name])).flatten() for name in names]
            )
            flat = workers.sum(flat / num_episodes)
            losses = workers.sum(sums.sum(0) / counts)
        weights, direct = _weigh(problem, params, losses, None)

    grads = {
        name: part.view_as(params[name])
        for name, part in zip(names, flat.split([leaf.numel() for leaf in leaves]), strict=True)
    }
    for name, gradient in {**direct, **_penalty_gradient(problem, params)}.items():
        grads[name] = grads[name] + gradient
    return MetaGradient(grads, losses, weights)


def _query_loss_sums(problem: Problem, params: Params, episode: Episode) -> Tensor:
    adapted = problem.adapt(params, episode.support)
    return loss_sums(problem.tasks, problem.predict(adapted, episode.query.inputs), episode.query)


def _displacement(problem: Problem, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
    adapted = problem.adapt(params, episode.support)
    sums = loss_sums(problem.tasks, problem.predict(adapted, episode.query.inputs), episode.query)
    return sums, {name: params[name] - adapted[name] for name in params if name.startswith("model.")}


def _weigh(
    problem: Problem, params: Params, losses: Tensor, gramian: Callable[[], Tensor] | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights [K] at these losses, and the gradient of the total with respect to the weighting's own parameters."""
    for task, loss in zip(problem.tasks, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            raise DivergedError(f"the query loss of task '{task.name}' is {loss}")
    losses = losses.detach().requires_grad_()
    own = select(params, "weighting")
    weighed = functional_call(problem.weighting, own, (losses, gramian))
    if weighed.ndim:
        return weighed.detach(), {}
    weights, *grads = torch.autograd.grad(weighed, [losses, *own.values()], allow_unused=True)
    return weights, prefixed({name: g for name, g in zip(own, grads, strict=True) if g is not None}, "weighting")


def _penalty_gradient(problem: Problem, params: Params) -> dict[str, Tensor]:
    own = select(params, "model")
    penalty = problem.model.penalty(own)
    if not penalty.requires_grad:
        return {}
    grads = torch.autograd.grad(penalty, list(own.values()), allow_unused=True)
    return prefixed({name: g for name, g in zip(own, grads, strict=True) if g is not None}, "model")
