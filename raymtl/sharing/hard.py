"""Hard parameter sharing (Caruana, 1997, Machine Learning 28): L = sum_t w_t L_t(h_t(f(x)))."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
from raymtl.types import Task


class Hard(SharingArchitecture):
    """One trunk for all tasks, one head for each.

    The gradient of the trunk is the weighted sum of the tasks' gradients; a head has that of its
    own task alone.
    """

    def __init__(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> None:
        super().__init__(tasks, encoders[0].shapes[-1])
        self.encoders = nn.ModuleList(encoders)
        self.isolate_task_graphs = isolate_task_graphs

    @property
    def shared(self) -> frozenset[str]:
        return self._names("encoders")

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        return dict.fromkeys(tasks, self.encoders[0](inputs))

    def features_by_task(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return apply_to_each(self.encoders[0], inputs, self.isolate_task_graphs)


class HardSpec(SharingSpecBase):
    """All tasks share the complete trunk; there are no hyperparameters.

    Example: `sharing: {name: hard}`
    """

    name: Literal["hard"] = "hard"
    helps: ClassVar[str] = "the default: tasks are alike, or data and memory are scarce"

    def num_encoders(self, num_tasks: int) -> int:
        return 1

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> Hard:
        return Hard(tasks, encoders, isolate_task_graphs)


def apply_to_each(
    module: Callable[[Tensor], Tensor], inputs: Mapping[str, Tensor], isolate_task_graphs: bool
) -> dict[str, Tensor]:
    """Applies `module` to the inputs [N_t, ...] of each task.

    The examples of all tasks pass through it together; with `isolate_task_graphs` each task passes
    separately.
    """
    if isolate_task_graphs:
        return {name: module(own) for name, own in inputs.items()}
    joint = module(torch.cat(list(inputs.values())))
    return dict(zip(inputs, joint.split([len(own) for own in inputs.values()]), strict=True))
