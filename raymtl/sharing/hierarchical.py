"""Low tasks supervised at low layers (Søgaard & Goldberg, 2016, ACL; JMT: Hashimoto et al., 2017,
arXiv:1611.01587).

y_t = h_t(f^(l_t) o ... o f^1 (x)), where l_t is the level of task t.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
from raymtl.sharing.hard import apply_to_each
from raymtl.types import Task


class Hierarchical(SharingArchitecture):
    """All tasks share one trunk; the head of a task reads the output of the stage at the task's
    level.

    Levels count from 1, the first stage, and a head reads the whole flattened output there, which
    is wide where the stage is a map. A task has no gradient above its level, and stages above the
    highest level do not exist. Where all levels are the last stage it is hard sharing. Deviations
    from JMT: a higher task sees the stages below and not the lower tasks' predictions; its
    successive regularisation is the mode of this name, `mode.name: hierarchical`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoders: Sequence[Encoder],
        levels: Mapping[str, int],
        isolate_task_graphs: bool = False,
    ) -> None:
        super().__init__(tasks, {name: encoders[0].shapes[level] for name, level in levels.items()})
        self.levels = levels
        self.isolate_task_graphs = isolate_task_graphs
        self.stages = nn.ModuleList(list(encoders[0].stages)[: max(levels.values())])

    @property
    def shared(self) -> frozenset[str]:
        # The second highest level: above it one task alone is left.
        return self._names(
            *(f"stages.{depth}" for depth in range(sorted(self.levels.values())[-2:][0]))
        )

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        features: dict[str, Tensor] = {}
        for level in range(1, self._highest(tasks) + 1):
            inputs = self.stages[level - 1](inputs)
            features |= {name: inputs.flatten(1) for name in tasks if self.levels[name] == level}
        return features

    def features_by_task(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        x = dict(inputs)
        for level in range(1, self._highest(tuple(inputs)) + 1):
            above = {name: x[name] for name in x if self.levels[name] >= level}
            x |= apply_to_each(self.stages[level - 1], above, self.isolate_task_graphs)
        return {name: own.flatten(1) for name, own in x.items()}

    def _highest(self, tasks: Sequence[str]) -> int:
        return max(self.levels[name] for name in tasks)


class HierarchicalSpec(SharingSpecBase):
    """Supervises each task at a level of the shared trunk.

    `levels` gives a task's level, from 1 to the number of the encoder's stages. A task that it does
    not name is supervised after the last stage.

    Example: `sharing: {name: hierarchical, levels: {left: 1}}`
    """

    name: Literal["hierarchical"] = "hierarchical"
    helps: ClassVar[str] = "some tasks are simpler than others and serve them"
    needs_stages: ClassVar[bool] = True
    levels: Mapping[str, PositiveInt] = {}

    def check(self, tasks: Sequence[Task], encoder: Encoder) -> tuple[str, str] | None:
        names, num_stages = [task.name for task in tasks], len(encoder.stages)
        for name, level in self.levels.items():
            if name not in names:
                return f"levels.{name}", f"expected one of the tasks {names}, got '{name}'."
            if level > num_stages:
                return (
                    f"levels.{name}",
                    f"expected a stage of the encoder, 1 to {num_stages}, got {level}. Lower it or "
                    "deepen the encoder.",
                )
        return super().check(tasks, encoder)

    def feature_shape(self, task: str, encoder: Encoder) -> tuple[int, ...]:
        return encoder.shapes[self.levels.get(task, len(encoder.stages))]

    def num_encoders(self, num_tasks: int) -> int:
        return 1

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> Hierarchical:
        last = len(encoders[0].stages)
        levels = {task.name: self.levels.get(task.name, last) for task in tasks}
        return Hierarchical(tasks, encoders, levels, isolate_task_graphs)
