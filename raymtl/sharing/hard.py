"""Hard parameter sharing (Caruana, 1997, Machine Learning 28): L = sum_t w_t L_t(h_t(f(x)))."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
from raymtl.types import Task


class Hard(SharingArchitecture):
    """One trunk for all tasks, one head for each."""

    @property
    def shared(self) -> frozenset[str]:
        return self._names("encoders")

    def features(self, inputs: Tensor) -> Mapping[str, Tensor]:
        return dict.fromkeys(self.task_names, self.encoders[0](inputs))


class HardSpec(SharingSpecBase):
    """No hyperparameters."""

    name: Literal["hard"] = "hard"

    def num_encoders(self, num_tasks: int) -> int:
        return 1

    def build(self, tasks: Sequence[Task], encoders: Sequence[Encoder]) -> Hard:
        return Hard(tasks, encoders)
