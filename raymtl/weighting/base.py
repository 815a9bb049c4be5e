"""The interfaces of all weightings: of losses, of gradients, and of the specs that build them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from raymtl.types import Spec, Task


class Jacobian(Protocol):
    """The gradients of K task losses with respect to the P shared parameters, summed over workers.

    Row t is the gradient of task t. The rows are computed when a method first asks for them, which
    costs one backward pass for each task.
    """

    def gramian(self) -> Tensor:
        """Inner products of the rows, [K, K]."""

    def rows(self) -> Tensor:
        """The whole matrix [K, P], the same on every worker."""

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replaces the rows by `function(rows)`, [K, P] -> [K, P].

        This is for methods that act on single coordinates. The function sees the same rows on every
        worker. From then on the Gramian and the weighted sum are those of the changed rows.
        """


class WeightingBase(nn.Module, ABC):
    """What the weightings of losses and those of gradients have in common: their state.

    Learned weights are parameters, all other state is buffers. Both are checkpointed, and both are
    equal on all workers.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.num_tasks = num_tasks

    def forward(self) -> Tensor:
        """The weights of the losses in the inner loop: `loss_weights`."""
        return self.loss_weights()

    def loss_weights(self) -> Tensor:
        """The weights [num_tasks] of the losses in the inner loop. Reading them changes no state.

        The default is 1 for each task, as for a method that weighs gradients and not losses.
        """
        return torch.ones(self.num_tasks)

    def state(self) -> dict[str, Tensor]:
        """A copy of all buffers."""
        return {name: value.clone() for name, value in self.named_buffers()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Sets all buffers to those of `state`, which may have grown since construction."""
        for name, value in self.named_buffers():
            setattr(self, name, state[name].to(value.device, copy=True))

    def update_after_step(self, before: Tensor, after: Tensor, tasks: Tensor) -> None:
        """Takes the losses [K] of one batch before and after the outer step.

        Called only where the spec says `needs_post_step_losses`.
        """


class LossWeighting(WeightingBase):
    """Weighs the losses of the tasks: one backward pass for all of them."""

    knows_weights: ClassVar[bool] = False
    """Whether the outer step weighs the tasks by `loss_weights` whatever their losses are.

    A step can then go back through each episode at once, and needs the memory of one.
    """

    def forward(self, losses: Tensor | None = None, tasks: Tensor | None = None) -> Tensor:
        """`weigh` for the outer step, by default of all tasks; `loss_weights` without losses."""
        if losses is None:
            return self.loss_weights()
        if tasks is None:
            tasks = torch.arange(self.num_tasks)
        return self.weigh(losses, tasks)

    @abstractmethod
    def weigh(self, losses: Tensor, tasks: Tensor) -> Tensor:
        """Weights [K] of the tasks in this outer step, or a scalar total to differentiate.

        Called once a step on all workers with equal arguments, so that state changes alike on all.

        Args:
            losses: [K], means over all workers and episodes. A total is differentiated with respect
                to them.
            tasks: [K], the indices of the tasks that have labels. The state of all other tasks
                must stay as it is.
        """


class GradientWeighting(WeightingBase):
    """Weighs the gradients of the tasks: one backward pass for each of them."""

    def forward(
        self,
        losses: Tensor | None = None,
        jacobian: Jacobian | None = None,
        tasks: Tensor | None = None,
    ) -> Tensor:
        """`weigh` for the outer step, by default of all tasks; `loss_weights` without losses."""
        if losses is None:
            return self.loss_weights()
        if jacobian is None:
            name = type(self).__name__
            raise TypeError(f"expected the Jacobian of the losses, got None: {name} needs it.")
        if tasks is None:
            tasks = torch.arange(self.num_tasks)
        return self.weigh(losses, jacobian, tasks)

    @abstractmethod
    def weigh(self, losses: Tensor, jacobian: Jacobian, tasks: Tensor) -> Tensor:
        """Weights [K] of the rows of the Jacobian in this outer step.

        Called once a step on all workers with equal arguments, so that state changes alike on all.

        Args:
            losses: [K], means over all workers and episodes, without a graph.
            jacobian: the gradients of these losses.
            tasks: [K], the indices of the tasks that have labels. The state of all other tasks
                must stay as it is.
        """


Weighting = LossWeighting | GradientWeighting


class WeightingSpecBase(Spec, ABC):
    """Hyperparameters of a weighting; `build` makes it."""

    section: ClassVar[str] = "weighting"

    helps: ClassVar[str]
    """When one would choose the method, half a sentence for docs/methods.md."""

    needs_gradients: ClassVar[bool] = False
    """Whether the method weighs gradients, at the cost of one backward pass for each task."""

    needs_post_step_losses: ClassVar[bool] = False
    """Whether the method needs the losses of the same batch again after the outer step, at the cost
    of one forward pass.
    """

    def check(self, tasks: Sequence[str]) -> tuple[str, str] | None:
        """Why these hyperparameters do not fit the tasks; None where they do.

        The first string is the key below `weighting.`, the second continues the sentence after it.
        """
        return None

    @abstractmethod
    def build(self, tasks: Sequence[Task]) -> Weighting:
        """The weighting of these tasks, in this order."""


class LossWeightingSpec(WeightingSpecBase):
    """Hyperparameters of a weighting of losses."""

    @abstractmethod
    def build(self, tasks: Sequence[Task]) -> LossWeighting: ...


class GradientWeightingSpec(WeightingSpecBase):
    """Hyperparameters of a weighting of gradients."""

    needs_gradients: ClassVar[bool] = True

    @abstractmethod
    def build(self, tasks: Sequence[Task]) -> GradientWeighting: ...
