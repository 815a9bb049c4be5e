"""What every loss weighting offers: from the losses, and if it asks for it the Gramian, to weights or a total."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from raymtl.types import Spec, Task


class LossWeighting(nn.Module, ABC):
    """Learned weights are parameters, other state is buffers: both are checkpointed, and equal on all workers."""

    @abstractmethod
    def forward(self, losses: Tensor, gramian: Callable[[], Tensor] | None = None) -> Tensor:
        """Weights [K] of the task losses [K], or a scalar total to differentiate.

        `gramian()` gives the inner products [K, K] of the tasks' gradients on the shared parameters, averaged over
        all workers and episodes; it costs one backward pass a task, and only when called. It is None in the inner
        loop, where a method that weighs gradients weighs all tasks equally.
        """


class WeightingSpecBase(Spec, ABC):
    """Hyperparameters of a weighting; `build` makes it."""

    needs_gradients: ClassVar[bool] = False
    """Whether the method calls `gramian`."""

    @abstractmethod
    def build(self, tasks: Sequence[Task]) -> LossWeighting:
        """The weighting of these tasks, in this order."""
