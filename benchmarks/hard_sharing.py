"""Hard sharing of one trunk in plain torch, on which libraries for many tasks are compared."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.encoders import LeNetSpec, ResNet18Spec

ModelKind = Literal["lenet", "resnet18", "resnet18_large"]


class Network(NamedTuple):
    """Hard sharing: a trunk, a linear head of 10 classes a task, and a batch."""

    trunk: nn.Module
    heads: nn.ModuleList
    inputs: Tensor
    targets: Tensor

    @property
    def shared(self) -> list[nn.Parameter]:
        return list(self.trunk.parameters())

    @property
    def private(self) -> list[nn.Parameter]:
        return list(self.heads.parameters())

    def losses(self) -> tuple[Tensor, list[Tensor]]:
        """The features, and the loss of each task."""
        features = self.trunk(self.inputs)
        pairs = zip(self.heads, self.targets, strict=True)
        return features, [F.cross_entropy(head(features), target) for head, target in pairs]


def network(kind: ModelKind, num_tasks: int, batch_size: int | None = None) -> Network:
    """`resnet18` sees 3x32x32 through its stem for ImageNet, `resnet18_large` through that for
    small pictures.
    """
    torch.manual_seed(0)
    if kind == "lenet":
        shape, size = (1, 36, 36), 64
        trunk: nn.Module = LeNetSpec().build(shape)
    else:
        shape, size = (3, 32, 32), 16
        trunk = ResNet18Spec(stem="imagenet" if kind == "resnet18" else "small").build(shape)
    size = batch_size or size
    inputs = torch.randn(size, *shape)
    heads = nn.ModuleList(nn.Linear(trunk(inputs[:1]).shape[1], 10) for _ in range(num_tasks))
    return Network(trunk, heads, inputs, torch.randint(10, (num_tasks, size)))
