"""T-nets against maml, and against layers that apply T after W, written down once more."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from raymtl.learners import TNet
from raymtl.step.meta_gradient import meta_gradient
from tests.conftest import SHARING, axes, episodes_of, experiment, perturbed
from tests.learners.laws import first
from tests.narrowing import checked, shared_inputs

pytestmark = pytest.mark.usefixtures("float64")

LAYERS = ("encoders.0.stages.0.1", "encoders.0.stages.1.1", "heads.left")


@pytest.mark.parametrize("learner", ["t_net", "warp_grad"])
@pytest.mark.parametrize("sharing", SHARING)
def test_with_the_identity_it_adapts_as_maml(
    sharing: str, learner: str, arrays: dict[str, np.ndarray]
) -> None:
    """To the last bit: rows of the identity pick, and 0 and 1 lose no digits."""
    found = []
    for name in (learner, "maml"):
        algorithm = axes(sharing, "uncertainty", name).build()
        params = perturbed(algorithm)
        params |= {n: v for n, v in algorithm.init_params().items() if n.startswith("learner.")}
        support, query = first(episodes_of(axes(sharing, "uncertainty", name), arrays))
        found.append(algorithm.predict(algorithm.adapt(params, support), query.inputs))
    for task, prediction in found[1].items():
        torch.testing.assert_close(found[0][task], prediction, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("sharing", ["hard", "cross_stitch", "low_rank", "mtan"])
@pytest.mark.parametrize(
    "values", [{}, {"learner.inner_optimizer": "adam"}, {"learner.first_order": True}]
)
def test_with_the_identity_it_is_maml(
    sharing: str, values: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    found = []
    for name in ("t_net", "maml"):
        chosen = axes(sharing, "uncertainty", name).override(values)
        algorithm = chosen.build()
        params = perturbed(algorithm)
        params |= {n: v for n, v in algorithm.init_params().items() if n.startswith("learner.")}
        found.append(meta_gradient(algorithm, params, episodes_of(chosen, arrays)).grads)
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-10, atol=1e-13)
    assert all(v.any() for n, v in found[0].items() if n.startswith("learner.transform.heads"))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_it_equals_applying_t_after_w(
    steps: int, first_order: bool, arrays: dict[str, np.ndarray]
) -> None:
    chosen = experiment(data__tasks=["left"], learner__name="t_net", learner__inner_steps=steps,
                        learner__inner_lr=0.1, learner__first_order=first_order)  # fmt: skip
    algorithm = chosen.build()
    params = perturbed(algorithm)
    transforms = [params[f"learner.transform.{layer}.weight"] for layer in LAYERS]

    def by_hand(phi: list[Tensor], inputs: Tensor) -> Tensor:
        x = inputs.flatten(1)
        for depth, transform in enumerate(transforms):
            x = (x @ phi[2 * depth].T) @ transform.T + phi[2 * depth + 1]
            x = x.relu() if depth < 2 else x
        return x

    episodes = episodes_of(chosen, arrays)
    computed = meta_gradient(algorithm, params, episodes)
    total = torch.zeros(())
    for index in range(chosen.train.meta_batch):
        support, query = (
            (shared_inputs(batch)[index], batch.targets["left"][index]) for batch in episodes
        )
        phi = [params[f"model.{layer}.{kind}"] for layer in LAYERS for kind in ("weight", "bias")]
        for _ in range(steps):
            loss = F.cross_entropy(by_hand(phi, support[0]), support[1])
            slopes = torch.autograd.grad(loss, phi, create_graph=True)
            phi = [
                p - 0.1 * (s.detach() if first_order else s)
                for p, s in zip(phi, slopes, strict=True)
            ]
        total = total + F.cross_entropy(by_hand(phi, query[0]), query[1]) / chosen.train.meta_batch
    torch.testing.assert_close(computed.losses[0], total.detach(), rtol=1e-11, atol=1e-13)
    grads = torch.autograd.grad(total, list(params.values()), allow_unused=True)
    for (name, value), gradient in zip(params.items(), grads, strict=True):
        expected = torch.zeros_like(value) if gradient is None else gradient
        torch.testing.assert_close(computed.grads[name], expected, rtol=1e-9, atol=1e-12)


def test_a_step_moves_weights_along_the_metric(
    arrays: dict[str, np.ndarray],
) -> None:
    """Of a convolution: T mixes the channels that come out."""
    chosen = experiment(
        learner__name="t_net",
        learner__inner_steps=1,
        encoder__name="conv",
        encoder__channels=[4, 8],
    )
    algorithm = chosen.build()
    params = perturbed(algorithm)
    support = first(episodes_of(chosen, arrays)).support
    before, after = algorithm.adapt(params, support, 0), algorithm.adapt(params, support, 1)
    name = "encoders.0.stages.1.0.weight"
    weight = before[f"model.{name}"].detach().requires_grad_()
    ordinary = {**before, f"model.{name}": weight}
    modules = {n[6:]: v for n, v in ordinary.items() if n.startswith("model.")}
    loss = algorithm.objective(
        params, functional_call(algorithm.model, modules, (support.inputs,)), support
    )
    (slope,) = torch.autograd.grad(loss, weight)
    transform = params[f"learner.transform.{name}"]
    expected = -checked(chosen.learner, TNet).inner_lr * torch.einsum(
        "ab,cb,cihw->aihw", transform, transform, slope
    )
    torch.testing.assert_close(
        after[f"model.{name}"] - before[f"model.{name}"], expected, rtol=1e-9, atol=1e-12
    )


def test_only_what_is_adapted_is_transformed() -> None:
    names = experiment(learner__name="t_net", learner__adapts=["heads.*"]).build().init_params()
    transformed = [name for name in names if name.startswith("learner.transform.")]
    assert transformed and all(name.startswith("learner.transform.heads.") for name in transformed)


@pytest.mark.parametrize("learner", ["t_net", "warp_grad"])
def test_adapted_parameters_predict_without_the_learners_own(
    learner: str, arrays: dict[str, np.ndarray]
) -> None:
    """In the module itself, and the same once more after they are folded again."""
    chosen = axes("cross_stitch", "static", learner)
    algorithm = chosen.build()
    support, query = first(episodes_of(chosen, arrays))
    adapted = algorithm.adapt(perturbed(algorithm), support)
    expected = algorithm.predict(adapted, query.inputs)
    algorithm.model.load_state_dict(
        {n[6:]: v for n, v in adapted.items() if n.startswith("model.")}
    )
    for name, prediction in algorithm.model(query.inputs).items():
        torch.testing.assert_close(prediction, expected[name], rtol=0, atol=0)
