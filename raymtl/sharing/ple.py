"""Progressive layered extraction (Tang et al., 2020, RecSys): customized gate control, level after
level.

x_t^l = softmax(W_t^l x_t^(l-1)) over the shared experts of x_s^(l-1) and the own experts of
x_t^(l-1); x_s^l = softmax(W_s^l x_s^(l-1)) over the shared experts and those of all tasks.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import ClassVar, Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
from raymtl.sharing.experts import Experts, SoftmaxGate
from raymtl.types import Task


class Level(nn.Module):
    """Experts over some consecutive stages, a gate of each task, and one of the shared branch
    unless it ends here.
    """

    def __init__(
        self,
        task_names: Sequence[str],
        encoders: Sequence[Encoder],
        num_shared_experts: int,
        stages: range,
        last: bool,
    ) -> None:
        super().__init__()
        experts = []
        for encoder in encoders:
            experts.append(nn.Sequential(*encoder.stages[stages.start : stages.stop]))
        common, own = experts[:num_shared_experts], experts[num_shared_experts:]
        each, shape = len(own) // len(task_names), encoders[0].shapes[stages.start]
        self.shared_experts = Experts(common)
        self.task_experts = nn.ModuleDict(
            {name: Experts(own[i * each : (i + 1) * each]) for i, name in enumerate(task_names)}
        )
        self.gates = nn.ModuleDict(
            {name: SoftmaxGate(shape, len(common) + each) for name in task_names}
        )
        if last:
            self.shared_gate = None
        else:
            self.shared_gate = SoftmaxGate(shape, len(experts))

    def forward(
        self, common: Tensor, own: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The input of the shared branch and of each task [N, ...] -> the same of the next level.

        Where the shared branch ends, its entry is what came in.
        """
        shared = self.shared_experts(common)
        tasks = {name: self.task_experts[name](x) for name, x in own.items()}
        outputs = {name: self.gates[name](x, shared + tasks[name]) for name, x in own.items()}
        if self.shared_gate is None:
            return common, outputs
        return self.shared_gate(common, [*shared, *chain.from_iterable(tasks.values())]), outputs


class PLE(SharingArchitecture):
    """Shared experts and experts of each task, mixed by gates at every level.

    The encoder's stages are divided into `num_levels` consecutive groups; an expert of a level is a
    copy of its group, and the gates see the flattened input of the level. Before the last level the
    shared branch sees the experts of all tasks, so these are shared as well. With one level it is
    customized gate control (cgc). Where tasks have separate inputs, those of each task pass through
    the experts of all tasks.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoders: Sequence[Encoder],
        num_shared_experts: int,
        num_levels: int,
    ) -> None:
        super().__init__(tasks, encoders[0].shapes[-1])
        num_stages = len(encoders[0].stages)
        cuts = [num_stages * level // num_levels for level in range(num_levels + 1)]
        self.levels = nn.ModuleList(
            Level(
                self.task_names,
                encoders,
                num_shared_experts,
                range(*cuts[level : level + 2]),
                level + 1 == num_levels,
            )
            for level in range(num_levels)
        )

    @property
    def shared(self) -> frozenset[str]:
        last = len(self.levels) - 1
        parts = [f"levels.{last}.shared_experts"]
        if last > 0:
            # A gate before the last level mixes what its own task's experts of the last level see:
            # no one else does.
            parts += [
                f"levels.{last - 1}.{part}"
                for part in ("shared_experts", "task_experts", "shared_gate")
            ]
        return self._names(*parts, *(f"levels.{level}" for level in range(last - 1)))

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        common, own = inputs, dict.fromkeys(self.task_names, inputs)
        *before, last = self.levels
        for level in before:
            common, own = level(common, own)
        _, features = last(common, {name: own[name] for name in tasks})
        return {name: x.flatten(1) for name, x in features.items()}


class PLESpec(SharingSpecBase):
    """Each task mixes shared experts with experts of its own at every level of the encoder.

    `num_levels` is the number of groups of stages that form the levels; `num_task_experts` is the
    number of each task's own experts at each level.

    Example: `sharing: {name: ple, num_levels: 2, num_task_experts: 2}`
    """

    name: Literal["ple"] = "ple"
    helps: ClassVar[str] = "as cgc, with an encoder of several stages to separate in step by step"
    needs_stages: ClassVar[bool] = True
    num_levels: PositiveInt = 2
    num_shared_experts: PositiveInt = 1
    num_task_experts: PositiveInt = 1

    def check(self, tasks: Sequence[Task], encoder: Encoder) -> tuple[str, str] | None:
        num_stages = len(encoder.stages)
        if self.num_levels > num_stages:
            return (
                "num_levels",
                f"expected at most the {num_stages} stages of the encoder, got {self.num_levels}. "
                "Lower sharing.num_levels or deepen the encoder.",
            )
        return super().check(tasks, encoder)

    def num_encoders(self, num_tasks: int) -> int:
        return self.num_shared_experts + num_tasks * self.num_task_experts

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> PLE:
        return PLE(tasks, encoders, self.num_shared_experts, self.num_levels)
