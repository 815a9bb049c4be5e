"""Pieces of which stages of pre-trained networks are made."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.encoders.layer_norm import with_plain_layer_norms


class Preprocess(nn.Module):
    """Pictures in [0, 1] -> what the network was trained on.

    They are resized to `size` pixels a side where it is given, grey ones get three equal channels,
    and then the mean of each channel is taken away and its deviation divided by.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        size: int | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.size, self.interpolation = size, interpolation

    def forward(self, x: Tensor) -> Tensor:
        if self.size is not None and tuple(x.shape[2:]) != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode=self.interpolation)
        normalised: Tensor = (x - self.get_buffer("mean")) / self.get_buffer("std")
        return normalised


class View(nn.Module):
    """A method of a network on some of its parameters and submodules, which are this module's own.

    Everything else that the method reads of the network, such as a flag, is the network's.
    """

    def __init__(
        self, network: nn.Module, names: Sequence[str], method: Callable[[Any, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self._own = frozenset(names)
        self._method = method
        self._network = (network,)  # in a tuple it is no submodule
        for name in names:
            setattr(self, name, getattr(network, name))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_network" not in self.__dict__ or name in self._own:
                raise
            return getattr(self._network[0], name)

    def forward(self, x: Tensor) -> Tensor:
        return self._method(self, x)


class TokensOut(nn.Module):
    """Tokens [N, T, C] -> [N, C, T, 1], the form that architectures mix stages in."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).unsqueeze(-1)


class TokensIn(nn.Module):
    """[N, C, T, 1] -> tokens [N, T, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(-1).transpose(1, 2)


class TokenMaps(nn.Module):
    """Tokens [N, T, C] -> the maps [N, C, height, width] of the patches, which come last."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        patches = x[:, x.shape[1] - self.height * self.width :]
        maps: Tensor = patches.transpose(1, 2).unflatten(2, (self.height, self.width))
        return maps


class Nothing(nn.Identity):
    """In the place of a module that draws by chance in training; `p` is what some callers read."""

    p = 0.0


class HardSigmoid(nn.Module):
    """The function of this name in torch, whose own has no second derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


RANDOM = ("DropPath", "StochasticDepth", "DropBlock2d", "PatchDropout")
"""Classes of timm and torchvision that draw by chance, beside torch's dropouts."""


def make_pure(network: nn.Module) -> None:
    """Makes the network a function of its parameters and inputs, of which every derivative exists.

    Nothing is drawn by chance, nothing is overwritten, and what behaves otherwise in training, such
    as auxiliary outputs, is off.
    """
    network.eval()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.dropout._DropoutNd) or type(child).__name__ in RANDOM:
                setattr(parent, name, Nothing())
            elif isinstance(child, nn.Hardsigmoid):
                setattr(parent, name, HardSigmoid())
    with_plain_layer_norms(network)
    module: Any
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # torch's fused attention has no second derivative
        if isinstance(module, nn.MultiheadAttention):
            module.train()  # in eval mode it takes another way where no gradient is asked for
