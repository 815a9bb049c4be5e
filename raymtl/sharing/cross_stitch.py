"""Cross-stitch networks (Misra et al., 2016, arXiv:1604.03539): x~_t = sum_s a_ts x_s after every
stage.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
from raymtl.types import Task


class CrossStitch(SharingArchitecture):
    """One tower per task; a learned matrix [K, K] mixes their activations after each stage.

    With the identity the towers are independent networks. All towers see the inputs, also for the
    prediction of one task. Where tasks have separate inputs, each tower sees those of all tasks in
    one pass. Deviation from the paper: one unit per stage, not per channel, and the towers start
    from one random initialisation each instead of pre-trained single-task networks.
    """

    def __init__(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], own: float, lr_scale: float
    ) -> None:
        super().__init__(tasks, encoders[0].shapes[-1])
        self.encoders = nn.ModuleList(encoders)
        self.stitches = nn.Parameter(mostly(own, len(tasks)).repeat(len(encoders[0].stages), 1, 1))
        self.lr_scale = {"stitches": lr_scale}

    @property
    def shared(self) -> frozenset[str]:
        return self._names("encoders", "stitches")

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        towers = [inputs] * len(self.encoders)
        for depth, stitch in enumerate(self.stitches.unbind(0)):
            stages = [encoder.get_submodule(f"stages.{depth}") for encoder in self.encoders]
            outputs = torch.stack([stage(x) for stage, x in zip(stages, towers, strict=True)])
            towers = list(torch.einsum("ts,s...->t...", stitch, outputs).unbind(0))
        return {
            name: x.flatten(1)
            for name, x in zip(self.task_names, towers, strict=True)
            if name in tasks
        }

    def features_by_task(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return split_by_task(self.features(torch.cat(list(inputs.values())), tuple(inputs)), inputs)


class CrossStitchSpec(SharingSpecBase):
    """Each task has a tower. After each stage, a learned matrix mixes the activations of all
    towers.

    `own` is the initial weight a_tt of a task's own tower; the other towers share 1 - own.
    `lr_scale` multiplies the outer learning rate of the matrix.

    Example: `sharing: {name: cross_stitch, own: 0.8}`
    """

    name: Literal["cross_stitch"] = "cross_stitch"
    helps: ClassVar[str] = "it is unknown at which depth tasks should share"
    needs_stages: ClassVar[bool] = True
    own: float = Field(0.9, ge=0, le=1)
    lr_scale: PositiveFloat = 10.0

    def num_encoders(self, num_tasks: int) -> int:
        return num_tasks

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> CrossStitch:
        return CrossStitch(tasks, encoders, self.own, self.lr_scale)


def mostly(own: float, size: int) -> Tensor:
    """A matrix [size, size] with `own` on the diagonal and rows that sum to 1."""
    if size == 1:
        return torch.ones(1, 1)
    return torch.full((size, size), (1 - own) / (size - 1)).fill_diagonal_(own)


def split_by_task(joint: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rows [N_t, ...] of each task's outputs [sum of N_t, ...] that belong to its inputs."""
    sizes = [len(own) for own in inputs.values()]
    return {name: joint[name].split(sizes)[i] for i, name in enumerate(inputs)}
