"""MAML++: between MAML, FOMAML and the mean over the steps of either."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.data.base import Arrays
from raymtl.learners import MAMLPlusPlus
from raymtl.step.meta_gradient import meta_gradient, update_after_step
from tests.conftest import axes, episodes_of, experiment, perturbed
from tests.learners.laws import (
    first,
)

pytestmark = pytest.mark.usefixtures("float64")


def grads_of(chosen: Experiment, arrays: Arrays, step: int = 0) -> dict[str, Tensor]:
    """At a perturbed model and the learner's own initial rates."""
    algorithm = chosen.build()
    model = {
        name: value for name, value in perturbed(algorithm).items() if name.startswith("model.")
    }
    return meta_gradient(
        algorithm, {**algorithm.init_params(), **model}, episodes_of(chosen, arrays), step=step
    ).grads


def plus_plus(**values: Any) -> Experiment:
    return experiment(
        learner__name="maml_pp", **{f"learner__{key}": value for key, value in values.items()}
    )


def assert_models_agree(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, gradient in theirs.items():
        if name.startswith("model."):
            torch.testing.assert_close(ours[name], gradient, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(("step", "first_order"), [(9, True), (10, False), (500, False)])
def test_once_annealed_it_is_fomaml_and_then_maml(
    step: int, first_order: bool, arrays: dict[str, np.ndarray]
) -> None:
    """The rates of one tensor, equal in all steps, have gradients that sum to that of maml's one rate."""
    ours = grads_of(plus_plus(multi_step_until=5, first_order_until=10), arrays, step)
    theirs = grads_of(
        experiment(learner__learn_inner_lr=True, learner__first_order=first_order), arrays
    )
    assert_models_agree(ours, theirs)
    for name, gradient in theirs.items():
        if name.startswith("learner."):
            assert ours[name].shape == (3,)
            torch.testing.assert_close(ours[name].sum(), gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("first_order", [False, True])
def test_at_first_it_averages_mamls(first_order: bool, arrays: dict[str, np.ndarray]) -> None:
    """With one, two and three steps."""
    ours = grads_of(
        plus_plus(multi_step_until=8, first_order_until=8 if first_order else 0), arrays, step=0
    )
    each = [
        grads_of(experiment(learner__inner_steps=k, learner__first_order=first_order), arrays)
        for k in (1, 2, 3)
    ]
    assert_models_agree(
        ours, {name: torch.stack([grads[name] for grads in each]).mean(0) for name in each[0]}
    )


def test_step_weights_sum_to_one() -> None:
    """In the end the last step has all of it."""
    learner = MAMLPlusPlus(inner_steps=4, multi_step_until=100)
    found = torch.tensor([learner.step_weights(step) for step in (0, 50, 75, 99, 100, 10**6)])
    torch.testing.assert_close(found.sum(1), torch.ones(6))
    torch.testing.assert_close(found[:, 0], torch.tensor([0.25, 0.125, 0.0625, 0.0025, 0.0, 0.0]))
    assert (found[:, :3] == found[:, :1]).all() and found[-1].tolist() == found[-2].tolist() == [
        0,
        0,
        0,
        1,
    ]
    assert MAMLPlusPlus(inner_steps=1).step_weights(0) == [1.0]
    assert MAMLPlusPlus(multi_step_until=0).step_weights(0) == [0, 0, 1]


def test_each_step_has_its_rate(
    arrays: dict[str, np.ndarray],
) -> None:
    """Further steps have that of the last."""
    chosen = plus_plus(inner_steps=3)
    algorithm = chosen.build()
    params = perturbed(algorithm, 0.5)
    support, _ = first(episodes_of(chosen, arrays))
    expected = {name: value for name, value in params.items() if name.startswith("model.")}
    for step in (0, 1, 2, 2, 2):
        loss = algorithm.objective(params, algorithm.predict(expected, support.inputs), support)
        slopes = torch.autograd.grad(loss, list(expected.values()))
        expected = {
            name: value
            - params[name.replace("model.", "learner.log_inner_lr.", 1)][step].exp() * slope
            for (name, value), slope in zip(expected.items(), slopes, strict=True)
        }
    adapted = algorithm.adapt(params, support, steps=5)
    for name, value in expected.items():
        torch.testing.assert_close(adapted[name], value, rtol=1e-11, atol=1e-13)
    assert algorithm.adapt(params, support, steps=0) == params


def test_post_step_losses_evaluate_the_same_steps(
    arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing moved, the losses after the move are those before."""
    chosen = axes("hard", "famo", "maml_pp")
    algorithm = chosen.build()
    params, episodes = perturbed(algorithm), episodes_of(chosen, arrays)
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for step in (0, 10**6):

        def remember(before: Tensor, after: Tensor, tasks: Tensor, at: int = step) -> None:
            seen[at] = (before, after)

        meta = meta_gradient(algorithm, params, episodes, step=step)
        monkeypatch.setattr(algorithm.weighting, "update_after_step", remember)
        update_after_step(algorithm, params, episodes, meta)
        torch.testing.assert_close(*seen[step], rtol=1e-12, atol=1e-13)
    assert not torch.allclose(seen[0][0], seen[10**6][0], rtol=1e-3)
