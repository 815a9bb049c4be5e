"""Hard parameter sharing (Caruana, 1997, Machine Learning 28): L = sum_t w_t L_t(h_t(f(x)))."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
from raymtl.types import Task


class Hard(SharingArchitecture):
    """One trunk for all tasks, one head for each."""

    def __init__(self, tasks: Sequence[Task], encoders: Sequence[Encoder]) -> None:
        super().__init__(tasks, encoders[0].out_features)
        self.encoders = nn.ModuleList(encoders)

    @property
    def shared(self) -> frozenset[str]:
        return self._names("encoders")

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        return dict.fromkeys(tasks, self.encoders[0](inputs))

    def features_of_own(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        # The trunk is the same for all: one pass over all examples instead of one a task.
        joint = self.encoders[0](torch.cat(list(inputs.values())))
        parts = joint.split([len(own) for own in inputs.values()])
        return dict(zip(inputs, parts, strict=True))


class HardSpec(SharingSpecBase):
    """No hyperparameters."""

    name: Literal["hard"] = "hard"
    helps: ClassVar[str] = "tasks agree, or data are few: the fewest parameters, the least overfitting; try it first"

    def num_encoders(self, num_tasks: int) -> int:
        return 1

    def build(self, tasks: Sequence[Task], encoders: Sequence[Encoder]) -> Hard:
        return Hard(tasks, encoders)
