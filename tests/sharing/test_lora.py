"""Low-rank adapters: each task's weights are W + (alpha / r) B_t A."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from raymtl.encoders import Encoder, LeNetSpec, from_module
from raymtl.learners.gradient import GradientLearner
from raymtl.sharing import LoRASpec
from raymtl.sharing.lora import LoRA
from raymtl.tasks import classification, regression
from raymtl.types import UserError
from tests.conftest import experiment
from tests.sharing.laws import assert_predicts_as_hard_sharing, moved

pytestmark = pytest.mark.usefixtures("float64")

TASKS = (classification("a", 4), regression("b", 0.0, 1.0))
LENET = (LeNetSpec(maps=(2, 3), hidden=(5,)), (1, 20, 17))
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 5), (6,)),
    "linear over places": (nn.Linear(6, 5, bias=False), (3, 6)),
    "conv": (nn.Conv2d(4, 6, 3), (4, 8, 7)),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2)), (4, 8, 7)),
    "dilated": (nn.Conv2d(4, 6, 3, padding="same", dilation=2, bias=False), (4, 8, 7)),
    "groups": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 8, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 8, 7)),
}


def merged(params: dict[str, Tensor], task: str, scale: float) -> dict[str, Tensor]:
    """The parameters of the task's own trunk: dense weights, and no adapters."""
    own = {name.removeprefix("encoders.0."): value for name, value in params.items()}
    dense = {name: value for name, value in own.items() if ".lora." not in name}
    for name, down in own.items():
        if name.endswith(".lora.A"):
            layer = name.removesuffix(".lora.A")
            weight, up = dense[f"{layer}.weight"], own[f"{layer}.lora.B.{task}"]
            change = torch.einsum("or,r...->o...", up, down)
            dense[f"{layer}.weight"] = weight + scale * change
    return {name: value for name, value in dense.items() if not name.startswith("heads.")}


def adapted(trunk: Encoder, **values: Any) -> tuple[LoRA, dict[str, Tensor]]:
    """An architecture on a copy of the trunk, and parameters in which no B_t is 0."""
    model = LoRASpec(**values).build(TASKS, [deepcopy(trunk)])
    return model, {name: value.requires_grad_() for name, value in moved(model, 0.3).items()}


def test_it_starts_from_hard_sharing() -> None:
    """To the bit."""
    encoder, shape = LENET
    trunk = encoder.build(shape)
    model = LoRASpec().build(TASKS, [deepcopy(trunk)])
    assert_predicts_as_hard_sharing(model, trunk, TASKS, shape, exactly=True)


@pytest.mark.parametrize("rank", [1, 3, 50])
@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_a_dense_change_of_the_weight(kind: str, rank: int) -> None:
    """So are its gradients, in the weights, the matrices and the inputs."""
    layer, shape = LAYERS[kind]
    trunk = Encoder([deepcopy(layer).double()], shape)
    model, params = adapted(trunk, rank=rank, alpha=5.0)
    own_inputs = {task.name: torch.randn(3, *shape, requires_grad=True) for task in TASKS}
    features = functional_call(model, params, (own_inputs,), {"output": "features"})
    for task, inputs in own_inputs.items():
        dense = functional_call(trunk, merged(params, task, 5.0 / rank), (inputs,))
        torch.testing.assert_close(features[task], dense, rtol=1e-12, atol=1e-12)
        weights = torch.randn_like(dense)
        wanted = [inputs, *params.values()]
        found, expected = (
            torch.autograd.grad(
                (outputs.square() * weights).sum(),
                wanted,
                materialize_grads=True,
                retain_graph=True,
            )
            for outputs in (features[task], dense)
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_a_whole_encoder_is_a_dense_one() -> None:
    encoder, shape = LENET
    trunk, inputs = encoder.build(shape), torch.randn(3, *shape)
    model, params = adapted(trunk, rank=2, alpha=3.0)
    features = functional_call(model, params, (inputs,), {"output": "features"})
    for task in ("a", "b"):
        dense = functional_call(trunk, merged(params, task, 1.5), (inputs,))
        torch.testing.assert_close(features[task], dense, rtol=1e-12, atol=1e-12)


def test_modules_choose_the_layers() -> None:
    encoder, shape = LENET
    model, _ = adapted(encoder.build(shape), modules=["*", "-stages.0.*"])
    layers = {name.split(".lora.")[0] for name, _ in model.named_parameters() if ".lora." in name}
    assert layers == {"encoders.0.stages.1.0", "encoders.0.stages.2.1"}
    assert {name for name in model.shared if ".lora." in name} == {f"{n}.lora.A" for n in layers}


def test_the_inner_loop_can_move_the_matrices_alone() -> None:
    algorithm = experiment(sharing__name="lora", learner__adapts=["*lora*"]).build()
    params = algorithm.init_params()
    assert isinstance(algorithm.learner, GradientLearner)
    moving = algorithm.learner.start(params)
    assert set(moving) == {name for name in params if ".lora." in name} != set()


def test_a_frozen_trunk_is_no_parameter() -> None:
    """Its values are kept beside the parameters, whose gradients are those beside a trunk that is trained."""
    free, frozen = (
        experiment(sharing__name="lora", sharing__frozen=each).build() for each in (False, True)
    )
    params = free.init_params()
    own = frozen.init_params()
    assert set(own) == {n for n in params if ".lora." in n or n.startswith("model.heads.")}
    trunk = {name: value for name, value in params.items() if name not in own}
    constants = {f"constant.{n.removeprefix('model.')}": v for n, v in trunk.items()}
    assert constants.keys() == frozen.constants().keys()
    assert all(torch.equal(constants[n], v) for n, v in frozen.constants().items())
    inputs = torch.randn(3, *experiment().data.input_shape)
    both = (free, params), (frozen, own)
    losses = [torch.cat(list(a.predict(p, inputs).values()), 1).square().sum() for a, p in both]
    grads = [
        torch.autograd.grad(loss, [p[n] for n in own])
        for loss, (_, p) in zip(losses, both, strict=True)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def refusal(module: nn.Module, shape: tuple[int, ...], **values: Any) -> str:
    refused = LoRASpec(**values).check(TASKS, from_module(deepcopy(module).double(), shape))
    assert refused is not None
    return ": ".join(refused)


@pytest.mark.parametrize(
    ("module", "values", "sentence"),
    [
        (nn.ReLU(), {}, "name: expected an encoder with layers of Linear or Conv2d"),
        (
            nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
            {},
            "modules: expected convolutions that are padded with zeros, got stages.0 with reflect.",
        ),
        (nn.Conv2d(2, 2, 1), {"modules": ["head"]}, "'head' matches none of ['stages.0']"),
        (nn.Conv2d(2, 2, 1), {"modules": ["*", "-stages.*"]}, "which leave out all"),
    ],
)
def test_what_cannot_be_adapted_is_refused(
    module: nn.Module, values: dict[str, Any], sentence: str
) -> None:
    assert sentence in refusal(module, (2, 5, 5), **values)


def test_a_mistake_names_its_key() -> None:
    with pytest.raises(UserError, match=r"^sharing\.modules: .*'layer1' matches none of"):
        experiment(sharing__name="lora", sharing__modules=["layer1"])
