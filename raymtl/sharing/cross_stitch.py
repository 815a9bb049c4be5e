"""Cross-stitch networks (Misra et al., 2016, arXiv:1604.03539): x~_t = sum_s a_ts x_s after every stage."""

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

    With the identity the towers are independent networks. Deviation from the paper: one unit per stage, not per
    channel, and the towers start from one random initialisation each instead of pre-trained single-task networks.
    """

    def __init__(self, tasks: Sequence[Task], encoders: Sequence[Encoder], own: float, lr_scale: float) -> None:
        super().__init__(tasks, encoders[0].out_features)
        self.encoders = nn.ModuleList(encoders)
        num_tasks, num_stages = len(tasks), len(encoders[0].stages)
        other = (1 - own) / max(num_tasks - 1, 1)
        initial = torch.full((num_tasks, num_tasks), other).fill_diagonal_(own if num_tasks > 1 else 1.0)
        self.stitches = nn.Parameter(initial.repeat(num_stages, 1, 1))
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
        return {name: x.flatten(1) for name, x in zip(self.task_names, towers, strict=True) if name in tasks}


class CrossStitchSpec(SharingSpecBase):
    """`own` is the initial a_tt, the others share 1 - own; `lr_scale` multiplies the outer learning rate of a."""

    name: Literal["cross_stitch"] = "cross_stitch"
    helps: ClassVar[str] = "it is unknown at which depth tasks should share"
    own: float = Field(0.9, ge=0, le=1)
    lr_scale: PositiveFloat = 10.0

    def num_encoders(self, num_tasks: int) -> int:
        return num_tasks

    def build(self, tasks: Sequence[Task], encoders: Sequence[Encoder]) -> CrossStitch:
        return CrossStitch(tasks, encoders, self.own, self.lr_scale)
