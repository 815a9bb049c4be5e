"""ANIL: MAML on the heads alone."""

import numpy as np
import pytest
import torch
from torch import nn

from raymtl.encoders import Encoder
from raymtl.learners import ANIL, MAML
from raymtl.sharing import SharingArchitecture
from raymtl.sharing.hard import Hard
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import Params
from tests.conftest import SHARING, axes, episodes_of, experiment, perturbed
from tests.learners.laws import (
    first,
)

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("learn_inner_lr", [False, True])
def test_on_heads_alone_it_is_maml(learn_inner_lr: bool, arrays: dict[str, np.ndarray]) -> None:
    chosen = experiment()
    tasks = chosen.data.make_tasks()
    flat = Encoder([nn.Flatten()], (1, 16, 16))
    found = []
    for learner in (ANIL, MAML):
        torch.manual_seed(0)
        model = Hard(tasks, [flat])
        own = learner(inner_steps=3, inner_lr=0.01, learn_inner_lr=learn_inner_lr)
        algorithm = Algorithm(tasks, model, chosen.weighting.build(tasks), own)
        found.append(
            meta_gradient(algorithm, perturbed(algorithm), episodes_of(chosen, arrays)).grads
        )
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert gradient.any()
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sharing", ["hard", "cross_stitch"])
def test_it_fits_the_heads_on_features_that_stay(
    sharing: str, arrays: dict[str, np.ndarray]
) -> None:
    """Gradient descent of torch on heads that read the features as data."""
    chosen = axes(sharing, "static", "anil").override(
        {"learner.inner_steps": 4, "learner.inner_lr": 0.1}
    )
    algorithm = chosen.build()
    params = perturbed(algorithm)
    support, _ = first(episodes_of(chosen, arrays))
    adapted = algorithm.adapt(params, support)
    with torch.no_grad():
        for name, value in algorithm.model.named_parameters():
            value.copy_(params[f"model.{name}"])
        features = algorithm.model(support.inputs, output="features")
    heads = algorithm.model.heads
    optimizer = torch.optim.SGD(heads.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        losses = [
            t.loss(heads[t.name](features[t.name]), support.targets[t.name]).mean()
            for t in algorithm.tasks
        ]
        torch.stack(losses).sum().backward()
        optimizer.step()
    for name, value in algorithm.model.named_parameters():
        torch.testing.assert_close(adapted[f"model.{name}"], value, rtol=1e-12, atol=1e-13)
        assert name.startswith("heads.") != torch.equal(
            adapted[f"model.{name}"], params[f"model.{name}"]
        )


def test_only_heads_have_learned_rates(arrays: dict[str, np.ndarray]) -> None:
    algorithm = axes("hard", "static", "anil").override({"learner.learn_inner_lr": True}).build()
    rates = {name for name in algorithm.init_params() if name.startswith("learner.")}
    assert rates == {
        f"learner.log_inner_lr.heads.{t}.{p}"
        for t in ("left", "right", "sum")
        for p in ("weight", "bias")
    }


@pytest.mark.parametrize("values", [{}, {"learner.first_order": True}])
@pytest.mark.parametrize("sharing", SHARING)
def test_support_features_are_computed_once_exactly(
    sharing: str, values: dict[str, bool], arrays: dict[str, np.ndarray]
) -> None:
    """To the same gradient as with the whole model in each step."""
    chosen = axes(sharing, "uncertainty", "anil").override(
        {"learner.inner_lr": 0.1, "learner.inner_steps": 4, **values}
    )
    algorithm = chosen.build()
    params = perturbed(algorithm)
    grads = meta_gradient(
        algorithm, params, episodes_of(chosen, arrays), execution=ExecutionConfig("loop")
    ).grads
    each_step = algorithm._replace(learner=EachStep(**algorithm.learner.model_dump()))
    expected = meta_gradient(each_step, params, episodes_of(chosen, arrays)).grads
    assert any(gradient.abs().max() > 1e-6 for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(grads[name], gradient, rtol=1e-9, atol=1e-12)


class EachStep(ANIL):
    """Runs the whole model in every inner step."""

    def _moves_heads_alone(self, model: SharingArchitecture, params: Params) -> bool:
        return False


@pytest.mark.parametrize("learner", ["anil", "maml_pp", "meta_sgd"])
def test_steps_of_the_heads_alone_run_no_encoder(
    learner: str, arrays: dict[str, np.ndarray]
) -> None:
    chosen = axes("hard", "static", learner)
    if learner != "anil":
        chosen = chosen.override({"learner.adapts": ["heads.*"]})
    algorithm = chosen.build()
    support, _ = first(episodes_of(chosen, arrays))
    passes: list[int] = []
    encoder = algorithm.model.get_submodule("encoders.0")
    encoder.register_forward_pre_hook(lambda module, inputs: passes.append(1))
    algorithm.adapt(perturbed(algorithm), support, 5)
    assert len(passes) == 1


def test_steps_of_the_encoder_run_it_each_time(arrays: dict[str, np.ndarray]) -> None:
    """Guards the test above; so do norms that differ from step to step."""
    for chosen in (
        axes("hard", "static", "boil"),
        axes("hard", "static", "anil").override({"encoder.norm": "per_step"}),
    ):
        algorithm = chosen.build()
        support, _ = first(episodes_of(chosen, arrays, count=1))
        passes: list[int] = []
        encoder = algorithm.model.get_submodule("encoders.0")
        encoder.register_forward_pre_hook(lambda module, inputs, own=passes: own.append(1))
        algorithm.learner.adapt(
            algorithm.model, perturbed(algorithm), support, algorithm.objective, 2
        )
        assert len(passes) == 2
