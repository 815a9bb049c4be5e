"""WarpGrad: its path is t_net's, its meta-gradient that of each step by itself, written down once more."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import Params
from tests.conftest import axes, episodes_of, experiment, perturbed
from tests.learners.laws import first
from tests.narrowing import shared_inputs

pytestmark = pytest.mark.usefixtures("float64")

LAYERS = ("encoders.0.stages.0.1", "encoders.0.stages.1.1", "heads.left")


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_it_adapts_as_t_net(optimizer: str, arrays: dict[str, np.ndarray]) -> None:
    """It also evaluates what it adapts to."""
    adapted: dict[str, Params] = {}
    judged: Sequence[tuple[float, Params]] = ()
    for name in ("t_net", "warp_grad"):
        chosen = axes("cross_stitch", "uncertainty", name).override(
            {"learner.inner_optimizer": optimizer}
        )
        algorithm = chosen.build()
        params = perturbed(algorithm)
        support = first(episodes_of(chosen, arrays)).support
        adapted[name] = algorithm.adapt(params, support)
        judged = algorithm.evaluated_params(params, support, 0)
    assert sum(weight for weight, _ in judged) == pytest.approx(1)
    for name, value in adapted["t_net"].items():
        torch.testing.assert_close(adapted["warp_grad"][name], value, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(judged[-1][1][name], value, rtol=1e-12, atol=1e-13)


def test_with_one_step_it_is_t_net(arrays: dict[str, np.ndarray]) -> None:
    """Its meta-gradient is the same."""
    found = []
    for name in ("warp_grad", "t_net"):
        chosen = axes("cross_stitch", "uncertainty", name).override({"learner.inner_steps": 1})
        algorithm = chosen.build()
        found.append(
            meta_gradient(algorithm, perturbed(algorithm), episodes_of(chosen, arrays)).grads
        )
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-11, atol=1e-13)


def test_its_meta_gradient_averages_single_steps(
    arrays: dict[str, np.ndarray],
) -> None:
    """From the points of the path, which are held fixed."""
    chosen = experiment(
        data__tasks=["left"],
        learner__name="warp_grad",
        learner__inner_steps=3,
        learner__inner_lr=0.1,
    )
    algorithm = chosen.build()
    params = perturbed(algorithm)
    episodes = episodes_of(chosen, arrays)
    computed = meta_gradient(algorithm, params, episodes)
    warps = [params[f"learner.transform.{layer}.weight"] for layer in LAYERS]

    def predicted(phi: list[Tensor], inputs: Tensor) -> Tensor:
        x = inputs.flatten(1)
        for depth, warp in enumerate(warps):
            x = (x @ phi[2 * depth].T) @ warp.T + phi[2 * depth + 1]
            x = x.relu() if depth < 2 else x
        return x

    names = [f"model.{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")]
    expected = {name: torch.zeros_like(value) for name, value in params.items()}
    for index in range(chosen.train.meta_batch):
        support, query = (
            (shared_inputs(batch)[index], batch.targets["left"][index]) for batch in episodes
        )
        points = [[params[name].detach() for name in names]]
        for _ in range(3):
            phi = [p.requires_grad_() for p in points[-1]]
            slopes = torch.autograd.grad(
                F.cross_entropy(predicted(phi, support[0]), support[1]), phi, create_graph=True
            )
            after = [p - 0.1 * s for p, s in zip(phi, slopes, strict=True)]
            loss = (
                F.cross_entropy(predicted(after, query[0]), query[1]) / 3 / chosen.train.meta_batch
            )
            grads = torch.autograd.grad(loss, [*phi, *warps])
            for name, gradient in zip(
                [*names, *(f"learner.transform.{x}.weight" for x in LAYERS)], grads, strict=True
            ):
                expected[name] = expected[name] + gradient
            points.append([p.detach() for p in after])
    for name, gradient in expected.items():
        torch.testing.assert_close(computed.grads[name], gradient, rtol=1e-9, atol=1e-12)
