"""Multi-task attention network (Liu et al., 2019, arXiv:1803.10704): a_t^l = sigmoid(h_t^l[p^l;
a_t^(l-1)]) * p^l.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
from raymtl.types import Task


class Attention(nn.Module):
    """A mask in (0, 1) for the output of one stage, of its shape; flat stages count as maps of one
    pixel.
    """

    def __init__(self, shape: Sequence[int], before: Sequence[int] | None, reduction: int) -> None:
        super().__init__()
        channels, width = shape[0], max(1, shape[0] // reduction)
        in_channels = channels
        if before is not None:
            in_channels += before[0]
        self.squeeze = nn.Conv2d(in_channels, width, 1)
        self.expand = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor, before: Tensor | None) -> Tensor:
        """The mask of the stage's output x [N, C, ...], given what the task attended to one stage
        earlier.
        """
        seen = _as_map(x)
        if before is not None:
            seen = torch.cat(
                [seen, F.adaptive_avg_pool2d(_as_map(before), (seen.shape[2], seen.shape[3]))], 1
            )
        mask: Tensor = self.expand(self.squeeze(seen).relu()).sigmoid().view_as(x)
        return mask


def _as_map(x: Tensor) -> Tensor:
    if x.ndim == 4:
        return x
    return x[..., None, None]


class MTAN(SharingArchitecture):
    """All tasks share one trunk, and each task has an attention mask for the output of every stage.

    The head reads the masked output of the last stage. If all masks of the last stage are 1, this
    is hard sharing.

    Deviations from the paper: a mask is computed from the output of the stage that it multiplies,
    and not from that of the stage's first layer, because stages of any encoder are used as a whole;
    the masked output reaches the next attention module by average pooling alone, without a 3x3
    convolution; the two 1x1 convolutions of an attention module have no batch normalisation, whose
    statistics would leak the support set into the query.
    """

    def __init__(self, tasks: Sequence[Task], encoders: Sequence[Encoder], reduction: int) -> None:
        super().__init__(tasks, encoders[0].shapes[-1])
        self.trunk = encoders[0]
        shapes = self.trunk.shapes[1:]
        pairs = list(zip(shapes, [None, *shapes[:-1]], strict=True))
        self.attention = nn.ModuleDict()
        for name in self.task_names:
            modules = [Attention(shape, before, reduction) for shape, before in pairs]
            self.attention[name] = nn.ModuleList(modules)

    @property
    def shared(self) -> frozenset[str]:
        return self._names("trunk")

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        attended: dict[str, Tensor] = {}
        for depth, stage in enumerate(self.trunk.stages):
            inputs = stage(inputs)
            for name in tasks:
                mask = self.attention.get_submodule(f"{name}.{depth}")(inputs, attended.get(name))
                attended[name] = mask * inputs
        return {name: x.flatten(1) for name, x in attended.items()}


class MTANSpec(SharingSpecBase):
    """All tasks share one trunk, and each attends to what it needs of every stage.

    `reduction` divides the number of channels between the two convolutions of an attention module;
    1 is the paper's.

    Example: `sharing: {name: mtan, reduction: 4}`
    """

    name: Literal["mtan"] = "mtan"
    helps: ClassVar[str] = (
        "one strong trunk, of whose features each task needs others; few parameters more"
    )
    needs_stages: ClassVar[bool] = True
    reduction: PositiveInt = 1

    def check(self, tasks: Sequence[Task], encoder: Encoder) -> tuple[str, str] | None:
        for shape in encoder.shapes[1:]:
            if len(shape) not in (1, 3):
                return (
                    "name",
                    "mtan takes stages of shape [features] or [channels, height, width], got "
                    f"{shape}. Choose another encoder.",
                )
        return super().check(tasks, encoder)

    def num_encoders(self, num_tasks: int) -> int:
        return 1

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> MTAN:
        return MTAN(tasks, encoders, self.reduction)
