"""Layer norms of plain operations: torch's own values, and second derivatives that vmap and a loop agree on."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torchvision.models.convnext import LayerNorm2d

from raymtl.encoders import TimmSpec
from raymtl.encoders.layer_norm import with_plain_layer_norms


@pytest.mark.parametrize(
    "norm, shape",
    [
        (nn.LayerNorm(6, eps=1e-3), (4, 6)),
        (nn.LayerNorm((3, 6), bias=False), (4, 3, 6)),
        (nn.LayerNorm(6, elementwise_affine=False), (4, 5, 6)),
        (LayerNorm2d(6), (4, 6, 2, 3)),
    ],
)
@pytest.mark.usefixtures("float64")
def test_values_are_those_of_torch(norm: nn.LayerNorm, shape: tuple[int, ...]) -> None:
    norm = norm.double()
    for value in norm.parameters():
        nn.init.normal_(value)
    x = torch.randn(shape)
    expected = norm(x)
    plain = nn.Sequential(norm)
    with_plain_layer_norms(plain)
    assert plain[0] is not norm and set(plain.state_dict()) == {
        f"0.{name}" for name in norm.state_dict()
    }
    torch.testing.assert_close(plain(x), expected)


def moved(module: nn.Module, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """A loss after an inner step."""

    def loss(values: Mapping[str, Tensor]) -> Tensor:
        read: Tensor = functional_call(module, dict(values), (x,))
        return read.square().mean()

    gradients = grad(loss)(params)
    return loss({name: value - 0.1 * gradients[name] for name, value in params.items()})


def differences(module: nn.Module, x: Tensor) -> Tensor:
    """The largest difference of second derivatives between vmap and a loop, over the largest of them."""
    params = {n: value.detach().requires_grad_() for n, value in module.named_parameters()}
    leaves = list(params.values())
    looped = torch.autograd.grad(torch.stack([moved(module, params, e) for e in x]).sum(), leaves)
    mapped = torch.autograd.grad(vmap(lambda e: moved(module, params, e))(x).sum(), leaves)
    apart = [(one - other).abs().max() for one, other in zip(looped, mapped, strict=True)]
    return torch.stack(apart).max() / torch.stack([one.abs().max() for one in looped]).max()


@pytest.mark.parametrize("model", ["convnext_atto", "vit_tiny_patch16_224"])
def test_pretrained_networks_have_the_second_derivatives_of_a_loop(model: str) -> None:
    pytest.importorskip("timm")
    encoder = TimmSpec(model=model, size=32).build((3, 32, 32)).double()
    assert differences(encoder, torch.rand(2, 1, 3, 32, 32).double()) < 1e-9
