"""Laws of sharing architectures as assertions, and what their tests share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from raymtl.encoders import Encoder
from raymtl.sharing import HardSpec, SharingArchitecture
from raymtl.types import Task


def moved(model: torch.nn.Module, scale: float = 0.1) -> dict[str, torch.Tensor]:
    """Parameters off the symmetric points of an initialisation, so that no gradient is zero by accident."""
    return {
        key: value.detach() + scale * torch.randn_like(value)
        for key, value in model.named_parameters()
    }


def touched(output: torch.Tensor, model: torch.nn.Module) -> set[str]:
    """The parameters in the graph of `output`."""
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(
        output.sum(), tuple(named.values()), allow_unused=True, retain_graph=True
    )
    return {name for name, gradient in zip(named, grads, strict=True) if gradient is not None}


def adapted_outputs(
    model: Any, params: dict[str, Tensor], inputs: Tensor | dict[str, Tensor]
) -> Any:
    """What an episode computes: an inner step on all tasks, then predictions, features and auxiliary terms."""

    def loss(at: dict[str, Tensor]) -> Any:
        return sum(
            value.square().mean() for value in functional_call(model, at, (inputs,)).values()
        )

    update = grad(loss)(params)
    phi = {name: value - 0.1 * update[name] for name, value in params.items()}
    kinds = ("predictions", "features", "auxiliary")
    return {kind: functional_call(model, phi, (inputs,), {"output": kind}) for kind in kinds}


def assert_vmap_is_a_loop(model: Any, inputs: Tensor, params: dict[str, Tensor]) -> None:
    def outer(theta: dict[str, Tensor], of_episode: Any) -> Any:
        outputs = adapted_outputs(model, theta, of_episode)
        return sum(
            value.square().mean() for kind in outputs.values() for value in kind.values()
        ), outputs

    together, outputs = vmap(grad(outer, has_aux=True), in_dims=(None, 0))(params, inputs)
    for index, of_episode in enumerate(inputs):
        alone, expected = grad(outer, has_aux=True)(params, of_episode)
        for kind, values in expected.items():
            for key, value in values.items():
                torch.testing.assert_close(outputs[kind][key][index], value)
        for key, value in alone.items():
            torch.testing.assert_close(together[key][index], value)


def assert_predicts_as_hard_sharing(
    model: SharingArchitecture,
    trunk: Encoder,
    tasks: Sequence[Task],
    shape: tuple[int, ...],
    *,
    exactly: bool = False,
) -> None:
    """Under the model's own heads, of inputs [3, *shape]."""
    hard = HardSpec().build(tasks, [trunk])
    hard.heads = model.heads
    inputs = torch.randn(3, *shape)
    expected = hard(inputs)
    for task, prediction in model(inputs).items():
        if exactly:
            assert torch.equal(prediction, expected[task])
        else:
            torch.testing.assert_close(prediction, expected[task])
