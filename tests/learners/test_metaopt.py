"""MetaOptNet's SVM against cvxpy, its optimality conditions and finite differences; its ridge against R2-D2's."""

from typing import Any

import cvxpy
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from raymtl.config import Experiment
from raymtl.learners import MetaOpt
from raymtl.learners.classes import BELOW
from raymtl.learners.metaopt import CENTRAL, dual
from raymtl.learners.r2d2 import primal
from tests.conftest import axes, episodes_of, experiment, perturbed
from tests.learners.laws import (
    assert_gradient_of_finite_differences,
    assert_the_order_of_the_support_set_has_no_say,
    assert_unlabelled_examples_have_no_say,
    first,
)

convex: Any = cvxpy
"""It exports its functions by an asterisk, which a type checker does not follow."""

pytestmark = pytest.mark.usefixtures("float64")

HEADS = pytest.mark.parametrize("head", ["svm", "ridge"])


def metaopt(sharing: str = "hard", weighting: str = "static", **values: Any) -> Experiment:
    return axes(sharing, weighting, "metaopt").override(
        {f"learner.{key}": value for key, value in values.items()}
    )


def examples(num: int, classes: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.randn(num, width), F.one_hot(torch.arange(num) % classes, classes).double()


def primal_loss(weight: Tensor, x: Tensor, y: Tensor, cost: float) -> Tensor:
    scores = x @ weight
    own = (y * scores).sum(1, keepdim=True)
    return 0.5 * weight.square().sum() + cost * (1 - y + scores - own).amax(1).sum()


@pytest.mark.parametrize("cost", [0.1, 10.0])
@pytest.mark.parametrize("width", [3, 12])
def test_the_svm_is_within_bounds_of_cvxpys(width: int, cost: float) -> None:
    x, y = examples(9, 3, width)
    weight = cost * x.T @ (y - dual(x @ x.T, y, cost, 20))
    free = convex.Variable((width, 3))
    scores = x.numpy() @ free
    own = convex.sum(convex.multiply(y.numpy(), scores), axis=1, keepdims=True)
    margins = convex.max(1 - y.numpy() + scores - own @ np.ones((1, 3)), axis=1)
    problem = convex.Problem(
        convex.Minimize(0.5 * convex.sum_squares(free) + cost * convex.sum(margins))
    )
    problem.solve(solver=convex.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    excess = float(primal_loss(weight, x, y, cost)) - problem.value
    bound = cost * 9 * 3 * CENTRAL
    assert -1e-8 < excess < 1.01 * bound
    # The loss is strongly convex with modulus 1: its excess bounds the distance.
    assert float((weight - torch.from_numpy(free.value)).norm()) < (2 * bound) ** 0.5


@pytest.mark.parametrize("cost", [0.01, 0.1, 1.0, 100.0])
@pytest.mark.parametrize(("num", "classes", "width"), [(10, 10, 8), (20, 5, 64), (50, 10, 16)])
def test_the_solution_lies_on_the_central_path(
    num: int, classes: int, width: int, cost: float
) -> None:
    """P > 0 with rows of sum 1, Z = CENTRAL / P, and the gradient less Z the same for all classes of an example."""
    x, y = examples(num, classes, width)
    p = dual(x @ x.T, y, cost, 20)
    assert (p > 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(num), rtol=0, atol=1e-12)
    gradient = cost * x @ (x.T @ (p - y)) + y - CENTRAL / p
    assert (gradient - gradient.mean(1, keepdim=True)).abs().max() < 1e-7 * (
        1 + cost * x.square().sum()
    )


def test_classes_that_are_not_shown_take_no_part() -> None:
    x, y = examples(8, 4, 6)
    wide = torch.cat([y[:, :2], torch.zeros(8, 3), y[:, 2:]], dim=1)
    p = dual(x @ x.T, wide, 0.5, 20)
    torch.testing.assert_close(
        p[:, [0, 1, 5, 6]], dual(x @ x.T, y, 0.5, 20), rtol=1e-10, atol=1e-12
    )
    assert not p[:, 2:5].any()


def test_fewer_than_two_classes_give_zero() -> None:
    x, _ = examples(4, 2, 3)
    for y in (torch.tensor([[0.0, 1.0]]).expand(4, 2), torch.zeros(4, 2)):
        p = dual(torch.where(y.any(1)[:, None], x @ x.T, 0.0), y, 0.1, 20)
        assert p.isfinite().all()
        torch.testing.assert_close(
            y.any(1)[:, None] * (y - p), torch.zeros(4, 2), rtol=0, atol=1e-12
        )


def test_the_gradient_of_the_dual_equals_finite_differences() -> None:
    x, y = examples(8, 4, 6)
    assert torch.autograd.gradcheck(
        lambda x: dual(x @ x.T, y, 0.7, 20), x.requires_grad_(), atol=1e-6
    )


def test_the_gradient_ignores_the_number_of_steps() -> None:
    x, y = examples(8, 4, 6)
    direction = torch.randn(8, 4)
    found = []
    for iterations in (20, 40):
        leaf = x.clone().requires_grad_()
        found.append(
            torch.autograd.grad((direction * dual(leaf @ leaf.T, y, 0.7, iterations)).sum(), leaf)[
                0
            ]
        )
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


def test_float32_agrees_with_float64() -> None:
    x, y = examples(50, 10, 64)
    exact = dual(x @ x.T, y, 0.1, 20)
    torch.testing.assert_close(
        dual((x @ x.T).float(), y.float(), 0.1, 20).double(), exact, rtol=1e-3, atol=1e-5
    )


def test_the_ridge_head_is_the_closed_form(arrays: dict[str, np.ndarray]) -> None:
    chosen = metaopt(head="ridge", cost=0.25)
    algorithm = chosen.build()
    params = perturbed(algorithm)
    support, query = first(episodes_of(chosen, arrays))
    own = {n.removeprefix("model."): v for n, v in params.items() if n.startswith("model.")}
    x, asked = (
        torch.func.functional_call(algorithm.model, own, (of.inputs,), {"output": "features"})[
            "left"
        ]
        for of in (support, query)
    )
    head = primal(x, F.one_hot(support.targets["left"], 10).double(), torch.tensor(4.0))
    expected = params["learner.scale.left"] * (asked @ head)
    found = algorithm.predict(algorithm.adapt(params, support), query.inputs)["left"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@HEADS
@pytest.mark.parametrize("own", ["learner.scale.", ""])
def test_the_meta_gradient_equals_finite_differences(
    own: str, head: str, arrays: dict[str, np.ndarray]
) -> None:
    assert_gradient_of_finite_differences(metaopt(head=head, cost=1.0), arrays, own)


@HEADS
def test_the_support_order_does_not_matter(head: str, arrays: dict[str, np.ndarray]) -> None:
    assert_the_order_of_the_support_set_has_no_say(metaopt("cross_stitch", head=head), arrays)


@HEADS
def test_absent_classes_are_the_least_likely(head: str, arrays: dict[str, np.ndarray]) -> None:
    """Without any label all classes are alike."""
    chosen = metaopt(head=head)
    algorithm = chosen.build()
    support, query = first(episodes_of(chosen, arrays))
    nothing = torch.zeros(len(support.inputs), dtype=torch.bool)
    support = support._replace(masks={"left": support.targets["left"] != 3, "right": nothing})
    predictions = algorithm.predict(algorithm.adapt(perturbed(algorithm), support), query.inputs)
    logits = predictions["left"]
    shown = torch.cat([logits[:, :3], logits[:, 4:]], dim=1)
    torch.testing.assert_close(logits[:, 3], shown.amin(1) - BELOW)
    assert not predictions["right"].any()


@HEADS
def test_unlabelled_examples_have_no_say(head: str, arrays: dict[str, np.ndarray]) -> None:
    assert_unlabelled_examples_have_no_say(metaopt("cross_stitch", head=head), arrays)


def test_it_says_which_task_it_cannot_learn() -> None:
    reason = MetaOpt().check(experiment(data__tasks=["left", "sum"]).data.make_tasks())
    assert reason == "it parts classes from each other, and task 'sum' is a regression"
