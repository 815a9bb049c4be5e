"""Customized gate control (Tang et al., 2020, RecSys): f_t(x) = softmax(W_t x) over shared and own
experts of x.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
from raymtl.sharing.experts import Experts, SoftmaxGate
from raymtl.types import Task


class CGC(SharingArchitecture):
    """Each task has a gate that mixes experts shared by all tasks with experts of its own.

    An expert is a whole encoder; the gates see the flattened input. The other tasks' own experts
    take no part.
    """

    def __init__(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], num_shared_experts: int
    ) -> None:
        super().__init__(tasks, encoders[0].shapes[-1])
        self.shared_experts = Experts(encoders[:num_shared_experts])
        own = encoders[num_shared_experts:]
        each, shape = len(own) // len(tasks), encoders[0].shapes[0]
        self.task_experts = nn.ModuleDict(
            {
                name: Experts(own[i * each : (i + 1) * each])
                for i, name in enumerate(self.task_names)
            }
        )
        self.gates = nn.ModuleDict(
            {name: SoftmaxGate(shape, num_shared_experts + each) for name in self.task_names}
        )

    @property
    def shared(self) -> frozenset[str]:
        return self._names("shared_experts")

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        common = self.shared_experts(inputs)
        return {
            name: self.gates[name](inputs, common + self.task_experts[name](inputs))
            for name in tasks
        }


class CGCSpec(SharingSpecBase):
    """Every task mixes experts that all share with experts of its own.

    `num_task_experts` is how many each task has to itself.

    Example: `sharing: {name: cgc, num_shared_experts: 2, num_task_experts: 1}`
    """

    name: Literal["cgc"] = "cgc"
    helps: ClassVar[str] = "some tasks lose by sharing: each keeps experts of its own"
    num_shared_experts: PositiveInt = 1
    num_task_experts: PositiveInt = 1

    def num_encoders(self, num_tasks: int) -> int:
        return self.num_shared_experts + num_tasks * self.num_task_experts

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> CGC:
        return CGC(tasks, encoders, self.num_shared_experts)
