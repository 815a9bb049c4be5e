"""What every loss weighting offers: from the losses, and if it asks for them the gradients, to
weights or a total.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from raymtl.types import Spec, Task


class Jacobian(Protocol):
    """The gradients of the task losses on the shared parameters, one row a task, summed over all
    workers.

    The rows are computed when first asked for, at the cost of one backward pass a task.
    """

    def gramian(self) -> Tensor:
        """Inner products of the rows, [K, K]."""

    def change(self, rows: Callable[[Tensor], Tensor]) -> None:
        """Puts `rows(the rows [K, P])`, [K, P], in their place, for methods that act on single
        coordinates.

        The function sees the same whole rows on every worker. The Gramian, and the sum that the
        weights are for, are those of the changed rows from then on.
        """


class LossWeighting(nn.Module, ABC):
    """Learned weights are parameters, other state is buffers: both are checkpointed, and equal on
    all workers.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.num_tasks = num_tasks

    def forward(
        self,
        losses: Tensor | None = None,
        jacobian: Jacobian | None = None,
        tasks: Tensor | None = None,
    ) -> Tensor:
        """`weigh` for the outer step; without losses `loss_weights` for the inner loop. All tasks
        unless told.
        """
        if losses is None:
            return self.loss_weights()
        return self.weigh(
            losses, jacobian, torch.arange(self.num_tasks) if tasks is None else tasks
        )

    def loss_weights(self) -> Tensor:
        """Weights [num_tasks] of the losses in the inner loop; must not move any state.

        A method that weighs gradients has no weights of losses: there all tasks weigh 1.
        """
        return torch.ones(self.num_tasks)

    @abstractmethod
    def weigh(self, losses: Tensor, jacobian: Jacobian | None, tasks: Tensor) -> Tensor:
        """Weights [K] of the tasks that have labels in this outer step, or a scalar total to
        differentiate.

        `losses` [K] are means over all workers and episodes, without a graph unless the total asks
        for one, and `tasks` [K] says which of the `num_tasks` tasks they belong to: state of the
        others must stay as it is. `jacobian` is there where the spec says `needs_gradients`. Called
        once a step, on all workers with equal arguments, so state moves alike on all of them.
        """

    def state(self) -> dict[str, Tensor]:
        """A copy of all buffers."""
        return {name: value.clone() for name, value in self.named_buffers()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes a state back, whatever the shapes of its buffers, which may have grown since
        construction.
        """
        for name, value in self.named_buffers():
            setattr(self, name, state[name].to(value.device, copy=True))

    def observe(self, before: Tensor, after: Tensor, tasks: Tensor) -> None:
        """Takes the losses [K] of the same batch before and after the move, where the spec says
        `needs_post_step_losses`.
        """


class WeightingSpecBase(Spec, ABC):
    """Hyperparameters of a weighting; `build` makes it."""

    helps: ClassVar[str]
    """When one would choose the method, half a sentence for docs/methods.md."""

    needs_gradients: ClassVar[bool] = False
    """Whether the method needs the Jacobian: one backward pass a task."""

    needs_post_step_losses: ClassVar[bool] = False
    """Whether the method needs the losses of the same batch once more after the move: one forward
    pass.
    """

    def check(self, tasks: Sequence[str]) -> tuple[str, str] | None:
        """What cannot be on these tasks: the key below `weighting.` and a sentence; None where all
        is well.
        """
        return None

    @abstractmethod
    def build(self, tasks: Sequence[Task]) -> LossWeighting:
        """The weighting of these tasks, in this order."""
