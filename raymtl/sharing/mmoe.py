"""Multi-gate mixture of experts (Ma et al., 2018, KDD): f_t(x) = sum_e softmax(W_t x)_e f_e(x)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
from raymtl.sharing.experts import Experts, SoftmaxGate
from raymtl.types import Task


class MMoE(SharingArchitecture):
    """All tasks share the experts, and each task has a gate that mixes them depending on the input.

    An expert is a whole encoder; the gates see the flattened input. With one expert it is hard
    sharing.
    """

    def __init__(self, tasks: Sequence[Task], encoders: Sequence[Encoder]) -> None:
        super().__init__(tasks, encoders[0].shapes[-1])
        self.experts = Experts(encoders)
        shape = encoders[0].shapes[0]
        self.gates = nn.ModuleDict(
            {name: SoftmaxGate(shape, len(encoders)) for name in self.task_names}
        )

    @property
    def shared(self) -> frozenset[str]:
        return self._names("experts")

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        experts = self.experts(inputs)
        return {name: self.gates[name](inputs, experts) for name in tasks}

    def features_by_task(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        # The experts are the same for all: one pass over all examples instead of one a task.
        joint, sizes = torch.cat(list(inputs.values())), [len(own) for own in inputs.values()]
        outputs = zip(*(output.split(sizes) for output in self.experts(joint)), strict=True)
        return {
            name: self.gates[name](own, experts)
            for (name, own), experts in zip(inputs.items(), outputs, strict=True)
        }


class MMoESpec(SharingSpecBase):
    """All tasks share the experts, and each has a gate of its own that mixes them.

    `num_experts` is the number of experts, each of them a copy of the encoder.

    Example: `sharing: {name: mmoe, num_experts: 3}`
    """

    name: Literal["mmoe"] = "mmoe"
    helps: ClassVar[str] = "tasks conflict in some inputs and agree in others"
    num_experts: PositiveInt = 4

    def num_encoders(self, num_tasks: int) -> int:
        return self.num_experts

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> MMoE:
        return MMoE(tasks, encoders)
