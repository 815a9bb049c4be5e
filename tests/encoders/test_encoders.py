"""Laws of the encoders over the whole union, in float64."""

import subprocess
import sys
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from raymtl.config import Experiment
from raymtl.encoders import (
    Conv4Spec,
    ConvSpec,
    Encoder,
    EncoderSpec,
    LeNetSpec,
    MLPSpec,
    ResNet18Spec,
)
from raymtl.encoders.norm import NormedSpec
from raymtl.types import Params, UserError

SMALL = {
    "conv": (ConvSpec(channels=(4, 8)), (1, 8, 8)),
    "conv4": (Conv4Spec(width=8), (1, 16, 16)),
    "lenet": (LeNetSpec(maps=(2, 3), hidden=(5,)), (2, 16, 16)),
    "mlp": (MLPSpec(hidden=(7, 6)), (1, 8, 8)),
    "resnet18": (ResNet18Spec(), (1, 8, 8)),
}
PICTURES = [name for name in SMALL if name != "mlp"]
ALONE = [*SMALL, *(f"{name} layer" for name in SMALL)]
NORMED = [*ALONE, *(f"{name} batch" for name in SMALL)]


def test_every_encoder_is_tested() -> None:
    pretrained = {"timm", "torchvision"}  # tests/encoders/test_pretrained.py
    assert set(SMALL) | pretrained == {
        spec.model_fields["name"].default for spec in get_args(get_args(EncoderSpec)[0])
    }


@pytest.mark.parametrize("before", SMALL)
@pytest.mark.parametrize("after", SMALL)
def test_one_name_changes_the_encoder(before: str, after: str) -> None:
    """A field that members have in common keeps its value, so it has to mean the same in both."""
    chosen = Experiment().override({"encoder.name": before}).override({"encoder.name": after})
    assert chosen.encoder.name == after


def made(name: str) -> tuple[Encoder, dict[str, torch.Tensor], tuple[int, ...]]:
    """The encoder of this name, a norm after it where one is named."""
    base, _, norm = name.partition(" ")
    spec, shape = SMALL[base]
    if norm:
        spec = spec.model_copy(update={"norm": norm})
    encoder = spec.build(shape)
    return encoder, {key: value.detach() for key, value in encoder.named_parameters()}, shape


def query_gradient(encoder: Any, params: Params, support: Tensor, query: Tensor) -> Any:
    """Through one inner gradient step: the second derivative of every layer takes part."""

    def loss(at: Params, inputs: Any) -> Any:
        return functional_call(encoder, dict(at), (inputs,)).square().mean()

    def outer(theta: Params) -> Any:
        update = grad(loss)(theta, support)
        return loss({name: value - 0.1 * update[name] for name, value in theta.items()}, query)

    return grad(outer)(params)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NORMED)
def test_shapes_are_those_of_the_stages(name: str) -> None:
    """The output is flat."""
    encoder, _, shape = made(name)
    x = torch.randn(3, *shape)
    walked, seen = x, [tuple(x.shape[1:])]
    for stage in encoder.stages:
        walked = stage(walked)
        seen.append(tuple(walked.shape[1:]))
    assert seen == encoder.shapes
    assert encoder(x).shape == (3, encoder.out_features)
    torch.testing.assert_close(walked.flatten(1), encoder(x))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ALONE)
def test_examples_do_not_see_their_batch(name: str) -> None:
    encoder, _, shape = made(name)
    x = torch.randn(3, *shape)
    torch.testing.assert_close(encoder(x)[:1], encoder(x[:1]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NORMED)
def test_vmap_equals_a_loop_in_second_order(name: str) -> None:
    """Of two in one batch the second is as it is alone: what leaks from the first would show in it."""
    encoder, params, shape = made(name)
    # A resnet's last maps are one pixel: statistics of fewer examples lose half of the digits.
    examples = 8 if name == "resnet18 batch" else 2
    support, query = torch.randn(2, 2, examples, *shape).unbind()
    together = vmap(lambda s, q: query_gradient(encoder, params, s, q))(support, query)
    alone = query_gradient(encoder, params, support[1], query[1])
    for key, value in alone.items():
        torch.testing.assert_close(together[key][1], value)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", [n for n in NORMED if n != "resnet18 batch"])
def test_the_second_order_gradient_agrees_with_finite_differences(name: str) -> None:
    """Along one random direction; the outer loss is the oracle, of which first derivatives alone are taken.

    Not for a resnet of batch norms: its last maps are one pixel, and of two values the statistics are too steep.
    """
    encoder, params, shape = made(name)
    support, query = torch.randn(2, 2, *shape).unbind()
    direction = {key: torch.randn_like(value) for key, value in params.items()}

    def outer(step: float) -> torch.Tensor:
        theta = {
            key: (value + step * direction[key]).requires_grad_() for key, value in params.items()
        }
        inner = functional_call(encoder, theta, (support,)).square().mean()
        update = torch.autograd.grad(inner, list(theta.values()))
        adapted = {key: theta[key] - 0.1 * u for key, u in zip(theta, update, strict=True)}
        output: Tensor = functional_call(encoder, adapted, (query,))
        return output.square().mean().detach()

    eps = 1e-7
    measured = (outer(eps) - outer(-eps)) / (2 * eps)
    computed = query_gradient(encoder, params, support, query)
    torch.testing.assert_close(
        sum((computed[key] * direction[key]).sum() for key in params),
        measured,
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", NORMED)
def test_encoders_keep_no_running_statistics(name: str) -> None:
    """They overwrite nothing."""
    encoder = made(name)[0]
    assert not list(encoder.buffers())
    assert not any(getattr(module, "inplace", False) for module in encoder.modules())


@pytest.mark.parametrize("name", PICTURES)
def test_inputs_that_are_no_pictures_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="takes pictures"):
        SMALL[name][0].build((10,))


@pytest.mark.parametrize(
    "spec, least",
    [
        (Conv4Spec(), 16),
        (LeNetSpec(), 16),
        (ResNet18Spec(), 8),
        (ResNet18Spec(stem="imagenet"), 32),
    ],
    ids=["conv4", "lenet", "resnet18-small", "resnet18-imagenet"],
)
def test_the_smallest_picture_leaves_one_pixel(spec: NormedSpec, least: int) -> None:
    """A smaller one is refused."""
    with torch.device("meta"):
        assert spec.build((3, least, least + 3)).shapes[0] == (3, least, least + 3)
        with pytest.raises(
            UserError, match=f"at least {least} x {least} pixels, got {least - 1} x {least}"
        ):
            spec.build((3, least - 1, least))


def test_lenet_has_the_papers_shapes() -> None:
    assert LeNetSpec().build((1, 32, 32)).shapes == [
        (1, 32, 32),
        (6, 14, 14),
        (16, 5, 5),
        (120,),
        (84,),
    ]


def test_conv4_of_mini_imagenet_has_1600_features() -> None:
    with torch.device("meta"):
        assert Conv4Spec().build((3, 84, 84)).shapes == [
            (3, 84, 84),
            *((64, s, s) for s in (42, 21, 10, 5)),
        ]


def test_resnet18_has_torchvisions_parameters() -> None:
    """Without the classifier."""
    from torchvision.models import resnet18

    with torch.device("meta"):
        theirs = sum(p.numel() for p in resnet18(num_classes=1).parameters()) - 513
        ours = ResNet18Spec(stem="imagenet").build((3, 64, 64))
    assert sum(p.numel() for p in ours.parameters()) == theirs
    assert ours.shapes[-1] == (512, 1, 1)


WITHOUT = """
import sys
sys.modules["torchvision"] = None
from raymtl.config import Experiment
from raymtl.encoders import ResNet18Spec
print(ResNet18Spec().stem)
"""


def test_torchvision_is_not_needed_to_import_the_encoders() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "small", done.stderr


@pytest.mark.parametrize(("stem", "dilated"), [("imagenet", 1), ("imagenet", 2), ("small", 3)])
def test_dilated_groups_are_plain_on_sampled_pixels(stem: str, dilated: int) -> None:
    """They make of every few pixels what plain ones make of all."""
    shape = (3, 64, 96) if stem == "imagenet" else (3, 16, 24)
    specs = [
        ResNet18Spec(stem=stem, pooled=False, norm="none", dilated=number)
        for number in (0, dilated)
    ]
    plain, finer = (spec.build(shape) for spec in specs)
    finer.load_state_dict(plain.state_dict())
    maps, fine = (
        encoder(torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)))
        for encoder in (plain, finer)
    )
    every = 2**dilated
    assert finer.shapes[-1] == (512, plain.shapes[-1][1] * every, plain.shapes[-1][2] * every)
    torch.testing.assert_close(
        fine.unflatten(1, finer.shapes[-1])[..., ::every, ::every],
        maps.unflatten(1, plain.shapes[-1]),
    )
