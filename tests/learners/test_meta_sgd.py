"""Meta-SGD: MAML with a rate for every element."""

import numpy as np
import pytest
import torch

from raymtl.learners import MetaSGD
from raymtl.step.algorithm import Algorithm
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import Batch, Episode
from raymtl.weighting import StaticSpec
from tests.conftest import axes, episodes_of, experiment, perturbed
from tests.learners.laws import (
    first,
)
from tests.learners.test_learners import DIM, Quadratic, Weights

pytestmark = pytest.mark.usefixtures("float64")


def test_one_quadratic_step_has_the_closed_form() -> None:
    """w_1 = w - alpha o A(w - a); the gradients are (I - A diag(alpha)) B(w_1 - b) and -A(w - a) o B(w_1 - b)."""
    quadratic = Quadratic()
    model = Weights([quadratic.task])
    algorithm = Algorithm(
        (quadratic.task,), model, StaticSpec().build([quadratic.task]), MetaSGD(inner_steps=1)
    )
    alpha = 0.1 * torch.randn(DIM)
    params = {**algorithm.init_params(), "learner.inner_lr.w": alpha.requires_grad_()}

    def batch(is_query: float) -> Batch:
        return Batch(torch.zeros(1, 1, 1), {"w": torch.full((1, 1), is_query)}, {})

    grads = meta_gradient(algorithm, params, Episode(batch(0.0), batch(1.0))).grads
    w, a = params["model.w"].detach(), alpha.detach()
    slope = quadratic.A @ (w - quadratic.a)
    outer = quadratic.B @ (w - a * slope - quadratic.b)
    torch.testing.assert_close(
        grads["model.w"], outer - quadratic.A @ (a * outer), rtol=1e-12, atol=1e-13
    )
    torch.testing.assert_close(grads["learner.inner_lr.w"], -slope * outer, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("first_order", [False, True])
def test_equal_rates_are_maml(first_order: bool, arrays: dict[str, np.ndarray]) -> None:
    """maml learns the logarithm, whose gradient is alpha times that of alpha."""
    found = []
    for values in (
        {"learner__name": "meta_sgd"},
        {"learner__name": "maml", "learner__learn_inner_lr": True},
    ):
        chosen = experiment(learner__first_order=first_order, **values)
        algorithm = chosen.build()
        model = {
            name: value for name, value in perturbed(algorithm).items() if name.startswith("model.")
        }
        params = {**algorithm.init_params(), **model}
        found.append(meta_gradient(algorithm, params, episodes_of(chosen, arrays)).grads)
    ours, theirs = found
    for name, _ in algorithm.model.named_parameters():
        torch.testing.assert_close(
            ours[f"model.{name}"], theirs[f"model.{name}"], rtol=1e-12, atol=1e-14
        )
        one_rate = 0.05 * ours[f"learner.inner_lr.{name}"].sum()
        torch.testing.assert_close(
            one_rate, theirs[f"learner.log_inner_lr.{name}"], rtol=1e-10, atol=1e-14
        )


def test_rates_of_zero_adapt_nothing(arrays: dict[str, np.ndarray]) -> None:
    chosen = axes("hard", "static", "meta_sgd")
    algorithm = chosen.build()
    params = {
        n: torch.zeros_like(v) if n.startswith("learner.") else v
        for n, v in perturbed(algorithm).items()
    }
    adapted = algorithm.adapt(params, first(episodes_of(chosen, arrays)).support)
    assert all(torch.equal(adapted[name], params[name]) for name in params)
