"""Batch norms of pre-trained networks, as functions of parameters, constants and examples alone.

y = gamma (x - mean) / sqrt(var + eps) + beta. Frozen: mean and var are the running statistics of
the pre-training, which are constants here. Support: they are those of the support set, as of
`raymtl.encoders.norm`.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raymtl.encoders.norm import BatchNorm
from raymtl.types import UserError

BatchNormKind = Literal["frozen", "support"]


class FrozenBatchNorm(nn.Module):
    """Normalises [N, C, ...] by constants; gamma and beta [C] are parameters.

    It is what the batch norm computes in torch's eval mode. Nothing is updated, so that it has
    derivatives of any order and may be used in inner loops.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: _BatchNorm, act: nn.Module) -> None:
        super().__init__()
        _take_affine(self, norm)
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.eps, self.act = norm.eps, act

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        places = (-1, *[1] * (x.ndim - 2))
        y: Tensor = self.act(torch.addcmul(shift.view(places), x, scale.view(places)))
        return y


class SupportBatchNorm(BatchNorm):
    """The same by the statistics of the support set, with the activation that follows it."""

    def __init__(self, norm: _BatchNorm, act: nn.Module) -> None:
        super().__init__(norm.num_features, eps=norm.eps)
        _take_affine(self, norm)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(super().forward(x))
        return y


def _take_affine(module: nn.Module, norm: _BatchNorm) -> None:
    """Gives the module the scale and shift of a batch norm, which may have none."""
    weight, bias = norm.weight, norm.bias
    if not norm.affine:
        weight = nn.Parameter(torch.ones(norm.num_features))
        bias = nn.Parameter(torch.zeros(norm.num_features))
    module.weight, module.bias = weight, bias


def has_batch_norms(network: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def convert_batch_norms(network: nn.Module, kind: BatchNormKind, model: str) -> None:
    """Puts one of the two in the place of every batch norm.

    Raises UserError for a module that keeps running statistics in a way of its own.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, _converted(child, kind))
    for name, module in network.named_modules():
        if isinstance(module, FrozenBatchNorm):
            continue
        kept = [key for key, _ in module.named_buffers(recurse=False) if key.startswith("running_")]
        if kept:
            raise UserError(
                f"encoder.model: {model}: {name}: expected batch norms of torch, which can be "
                f"frozen, got a {type(module).__name__} with {kept[0]}: running statistics are no "
                "function of the parameters, so that no gradient is right with them. Choose "
                "another model."
            )


def _converted(norm: _BatchNorm, kind: BatchNormKind) -> nn.Module:
    # timm's batch norms hold the activation that follows them.
    act = getattr(norm, "act", None) or nn.Identity()
    if kind == "support" or norm.running_mean is None:
        return SupportBatchNorm(norm, act)
    return FrozenBatchNorm(norm, act)
