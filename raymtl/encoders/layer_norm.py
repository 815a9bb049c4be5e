"""Layer norm (Ba et al., 2016, arXiv:1607.06450) of plain operations:
y = gamma (x - mean) / sqrt(var + eps) + beta, over the last axes.

torch 2.14 returns wrong second derivatives of its own layer norm where vmap is inside autograd, as
it is in an outer step over vmapped inner loops: on a small BERT they were off by 6e-5 of the
largest, in float64 too. tests/encoders/test_token_slot.py compares them with those of a loop.
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


def with_plain_layer_norms(module: nn.Module) -> None:
    """Puts such norms in the place of torch's own, under the same names."""
    for name, child in list(module.named_children()):
        if type(child) is nn.LayerNorm:  # what derives from it can compute something else
            setattr(module, name, PlainLayerNorm(child))
        else:
            with_plain_layer_norms(child)
