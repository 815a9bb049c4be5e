"""CAVIA against a network that takes its context as inputs, written down once more."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from raymtl.step.meta_gradient import meta_gradient
from tests.conftest import axes, episodes_of, experiment, perturbed
from tests.learners.laws import (
    first,
)
from tests.narrowing import shared_inputs

pytestmark = pytest.mark.usefixtures("float64")

LAYERS = ("encoders.0.stages.0.1", "encoders.0.stages.1.1", "heads.left")


def by_hand(params: dict[str, Tensor], context: Tensor, inputs: Tensor) -> Tensor:
    """Every layer reads its inputs with the context beside them: W of the inputs and V of the context are one matrix."""
    x = inputs.flatten(1)
    for depth, layer in enumerate(LAYERS):
        joint = torch.cat(
            [params[f"model.{layer}.weight"], params[f"learner.context_map.{layer}.bias"]], 1
        )
        x = torch.cat([x, context.expand(len(x), -1)], 1) @ joint.T + params[f"model.{layer}.bias"]
        x = x.relu() if depth < 2 else x
    return x


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_it_equals_a_network_reading_the_context(
    steps: int, first_order: bool, arrays: dict[str, np.ndarray]
) -> None:
    chosen = experiment(data__tasks=["left"], learner__name="cavia", learner__inner_steps=steps,
                        learner__inner_lr=0.3, learner__num_context=4, learner__first_order=first_order)  # fmt: skip
    algorithm = chosen.build()
    params = perturbed(algorithm)
    episodes = episodes_of(chosen, arrays)
    computed = meta_gradient(algorithm, params, episodes)
    total = torch.zeros(())
    for index in range(chosen.train.meta_batch):
        support, query = (
            (shared_inputs(batch)[index], batch.targets["left"][index]) for batch in episodes
        )
        context = torch.zeros(4, requires_grad=True)
        for _ in range(steps):
            (slope,) = torch.autograd.grad(
                F.cross_entropy(by_hand(params, context, support[0]), support[1]),
                context,
                create_graph=True,
            )
            context = context - 0.3 * (slope.detach() if first_order else slope)
        total = (
            total
            + F.cross_entropy(by_hand(params, context, query[0]), query[1])
            / chosen.train.meta_batch
        )
    torch.testing.assert_close(computed.losses[0], total.detach(), rtol=1e-11, atol=1e-13)
    grads = torch.autograd.grad(total, list(params.values()), allow_unused=True)
    for (name, value), gradient in zip(params.items(), grads, strict=True):
        expected = torch.zeros_like(value) if gradient is None else gradient
        torch.testing.assert_close(computed.grads[name], expected, rtol=1e-10, atol=1e-13)
        assert name.startswith("model.") or bool(computed.grads[name].any()) == (steps > 0)


@pytest.mark.parametrize(
    "encoder", [{"encoder__name": "mlp"}, {"encoder__name": "conv", "encoder__channels": [4, 8]}]
)
def test_vectors_move_along_their_maps(
    encoder: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    """What they moved by is V c for one c that all of them share; nothing else moves."""
    chosen = experiment(learner__name="cavia", learner__num_context=3, **encoder)
    algorithm = chosen.build()
    params = perturbed(algorithm)
    adapted = algorithm.adapt(params, first(episodes_of(chosen, arrays)).support)
    moved = {name: (adapted[name] - params[name]).detach() for name in params}
    shifted = [name for name in params if name.startswith("model.") and params[name].ndim == 1]
    assert all(moved[name].any() == (name in shifted) for name in params)
    maps = torch.cat(
        [params[f"learner.context_map.{name.removeprefix('model.')}"].detach() for name in shifted]
    )
    shift = torch.cat([moved[name] for name in shifted])
    context = torch.linalg.lstsq(maps, shift[:, None]).solution
    torch.testing.assert_close(maps @ context, shift[:, None], rtol=1e-9, atol=1e-12)


def test_the_expected_first_step_is_mamls(
    arrays: dict[str, np.ndarray],
) -> None:
    """To first order by alpha |grad|^2: the maps have E[V V^T] = I."""
    chosen = experiment(learner__name="cavia", learner__num_context=2000)
    maps = torch.cat(
        [m for n, m in chosen.build().init_params().items() if n.startswith("learner.")]
    )
    torch.testing.assert_close(maps @ maps.T, torch.eye(len(maps)), rtol=0, atol=0.12)


def test_an_adapted_model_is_an_ordinary_one(arrays: dict[str, np.ndarray]) -> None:
    """It predicts the same without the learner's tensors, in the module itself."""
    chosen = axes("cross_stitch", "static", "cavia")
    algorithm = chosen.build()
    support, query = first(episodes_of(chosen, arrays))
    adapted = algorithm.adapt(perturbed(algorithm), support)
    expected = algorithm.predict(adapted, query.inputs)
    algorithm.model.load_state_dict(
        {n.removeprefix("model."): v for n, v in adapted.items() if n.startswith("model.")}
    )
    for name, prediction in algorithm.model(query.inputs).items():
        torch.testing.assert_close(prediction, expected[name], rtol=0, atol=0)
