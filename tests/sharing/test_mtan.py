"""Multi-task attention network."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.encoders import ConvSpec, Encoder, LeNetSpec, MLPSpec
from raymtl.encoders.norm import NormedSpec
from raymtl.sharing import MTANSpec
from raymtl.sharing.mtan import MTAN, Attention
from raymtl.tasks import classification, regression
from tests.narrowing import checked, present
from tests.sharing.laws import assert_predicts_as_hard_sharing

pytestmark = pytest.mark.usefixtures("float64")

TASKS = (classification("a", 4), regression("b", 0.0, 1.0))
ENCODERS = {
    "mlp": (MLPSpec(hidden=(5, 4)), (6,)),
    "conv": (ConvSpec(channels=(4, 8)), (1, 7, 6)),
    "lenet": (LeNetSpec(maps=(2, 3), hidden=(5,)), (1, 20, 17)),
}
over_the_encoders = pytest.mark.parametrize("encoder, shape", ENCODERS.values(), ids=ENCODERS)


def attention_modules(model: MTAN, task: str) -> list[Attention]:
    """Of a task, one for each stage."""
    return [checked(module, Attention) for module in checked(model.attention[task], nn.ModuleList)]


@over_the_encoders
def test_full_last_masks_are_hard_sharing(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    """Those of earlier stages only say what later masks see."""
    trunk = encoder.build(shape)
    model = MTANSpec().build(TASKS, [trunk])
    with pytest.raises(AssertionError):
        assert_predicts_as_hard_sharing(model, trunk, TASKS, shape)
    for task in TASKS:
        last = attention_modules(model, task.name)[-1].expand
        nn.init.zeros_(last.weight)
        # sigmoid(50) = 1 - 2e-22, which is 1 in float64
        nn.init.constant_(present(last.bias), 50.0)
    assert_predicts_as_hard_sharing(model, trunk, TASKS, shape, exactly=True)


@over_the_encoders
def test_masks_lie_between_zero_and_one(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    trunk = encoder.build(shape)
    model = MTANSpec().build(TASKS, [trunk])
    inputs = torch.randn(3, *shape)
    shared = trunk(inputs)
    for attended in model(inputs, output="features").values():
        ratio = (attended / shared)[shared != 0]
        assert ((ratio > 0) & (ratio < 1)).all()


def test_flat_stages_follow_the_papers_equation() -> None:
    model, inputs = MTANSpec().build(TASKS, [MLPSpec(hidden=(5, 4)).build((6,))]), torch.randn(3, 6)
    features = model.features(inputs, ("a", "b"))
    first = model.trunk.stages[0](inputs)
    second = model.trunk.stages[1](first)

    def linear(convolution: Any, x: Tensor) -> Any:
        return x @ convolution.weight[:, :, 0, 0].T + convolution.bias

    for task in ("a", "b"):
        one, two = attention_modules(model, task)
        attended = first * linear(one.expand, linear(one.squeeze, first).relu()).sigmoid()
        seen = torch.cat([second, attended], 1)
        expected = second * linear(two.expand, linear(two.squeeze, seen).relu()).sigmoid()
        torch.testing.assert_close(features[task], expected)


def test_attended_maps_are_pooled_onward() -> None:
    """On a picture whose sides the pooling divides: blocks of 2 x 2 are averaged."""
    model, inputs = (
        MTANSpec().build(TASKS, [ConvSpec(channels=(4, 8)).build((1, 8, 8))]),
        torch.randn(2, 1, 8, 8),
    )
    features = model.features(inputs, ("a",))["a"]
    first = model.trunk.stages[0](inputs)
    second = model.trunk.stages[1](first)
    one, two = attention_modules(model, "a")
    attended = first * one.expand(one.squeeze(first).relu()).sigmoid()
    seen = torch.cat([second, F.avg_pool2d(attended, 2)], 1)
    torch.testing.assert_close(
        features, (second * two.expand(two.squeeze(seen).relu()).sigmoid()).flatten(1)
    )


def test_tasks_share_the_trunk_alone() -> None:
    model = MTANSpec().build(TASKS, [MLPSpec(hidden=(5, 4)).build((6,))])
    assert model.shared == {f"trunk.{name}" for name, _ in model.trunk.named_parameters()}


def test_reduction_narrows_the_attention_modules() -> None:
    model = MTANSpec(reduction=4).build(TASKS, [ConvSpec(channels=(4, 16)).build((1, 8, 8))])
    assert [module.squeeze.out_channels for module in attention_modules(model, "a")] == [1, 4]
    with pytest.raises(ValidationError, match="reduction"):
        MTANSpec(reduction=0)


def test_other_shapes_of_stages_are_refused() -> None:
    """A stage is flat or gives maps."""
    sequence = Encoder([nn.Linear(3, 4)], (5, 3))
    key, reason = present(MTANSpec().check(TASKS, sequence))
    assert key == "name" and "(5, 4)" in reason
    assert MTANSpec().check(TASKS, LeNetSpec().build((1, 16, 16))) is None
