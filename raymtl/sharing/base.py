"""What every sharing architecture offers to the step, the inner loop and the report."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from raymtl.encoders import Encoder
from raymtl.types import Params, Spec, Task


class SharingArchitecture(nn.Module, ABC):
    """Maps inputs to one prediction per task, through features that tasks share in some way.

    Subclasses build their parts in `__init__`, name the task-private ones in `private`, and compute `features`.
    """

    def __init__(self, tasks: Sequence[Task], encoders: Sequence[Encoder]) -> None:
        super().__init__()
        self.task_names = tuple(task.name for task in tasks)
        self.out_features = {task.name: task.out_features for task in tasks}
        self.lr_scale: Mapping[str, float] = {}  # of the outer learning rate, by the first part of a parameter's name
        self.encoders = nn.ModuleList(encoders)
        self.heads = nn.ModuleDict({task.name: task.head(encoders[0].out_features) for task in tasks})

    @property
    @abstractmethod
    def shared(self) -> frozenset[str]:
        """Names of the parameters that the losses of several tasks depend on."""

    @abstractmethod
    def features(self, inputs: Tensor) -> Mapping[str, Tensor]:
        """[N, ...] -> [N, out_features] for each task."""

    def forward(self, inputs: Tensor | Mapping[str, Tensor], *, heads: bool = True) -> dict[str, Tensor]:
        """One prediction per task, or with `heads=False` the features that the heads would read.

        Tasks that bring their own inputs each pass through the whole architecture with theirs.
        """
        if isinstance(inputs, Tensor):
            features = self.features(inputs)
        else:
            features = {name: self.features(inputs[name])[name] for name in self.task_names}
        outputs = {name: self.heads[name](features[name]) if heads else features[name] for name in self.task_names}
        # Losses and distances are computed in the parameters' precision, whatever the layers ran in.
        dtype = next(self.parameters()).dtype
        return {name: output.to(dtype) for name, output in outputs.items()}

    def penalty(self, params: Params) -> Tensor:
        """A term of the outer objective that depends on the parameters alone; `params` are named as in this module."""
        return torch.zeros((), device=next(iter(params.values())).device)

    def _names(self, *parts: str) -> frozenset[str]:
        return frozenset(name for name, _ in self.named_parameters() if name.split(".")[0] in parts)


class SharingSpecBase(Spec, ABC):
    """Hyperparameters of an architecture; `build` makes it."""

    @abstractmethod
    def num_encoders(self, num_tasks: int) -> int:
        """How many copies of the encoder the architecture consists of."""

    @abstractmethod
    def build(self, tasks: Sequence[Task], encoders: Sequence[Encoder]) -> SharingArchitecture:
        """The architecture over `num_encoders` encoders of equal shape."""
