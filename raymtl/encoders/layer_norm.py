"""Layer norm (Ba et al., 2016, arXiv:1607.06450) of plain operations:
y = gamma (x - mean) / sqrt(var + eps) + beta, over the last axes, or over the channels of maps.

torch 2.14 returns wrong second derivatives of its own layer norm where vmap is inside autograd, as
it is in an outer step over vmapped inner loops: in float64 they were off by up to 2 % of the
largest. tests/encoders/test_layer_norm.py compares those of this one with a loop's.
"""

from torch import Tensor, nn


class PlainLayerNorm(nn.Module):
    """Normalises [..., *shape] as the layer norm of torch whose parameters it takes."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.eps = norm.eps
        self.axes = tuple(range(-len(norm.normalized_shape), 0))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(self.axes, keepdim=True)
        variance = centred.square().mean(self.axes, keepdim=True)
        y = centred * (variance + self.eps).rsqrt()
        if self.weight is not None:
            y = y * self.weight
        if self.bias is not None:
            y = y + self.bias
        return y


class PlainLayerNorm2d(PlainLayerNorm):
    """The same over the channels of maps [N, C, H, W], at each place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


PLAIN = {"LayerNorm": PlainLayerNorm, "LayerNorm2d": PlainLayerNorm2d}
"""By the names that the classes have in torch, timm and torchvision; others compute something else.
"""


def with_plain_layer_norms(module: nn.Module) -> None:
    """Puts such norms in the place of torch's own, under the same names."""
    for name, child in list(module.named_children()):
        plain = PLAIN.get(type(child).__name__)
        if isinstance(child, nn.LayerNorm) and plain is not None:
            setattr(module, name, plain(child))
        else:
            with_plain_layer_norms(child)
