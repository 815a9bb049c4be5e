"""R2-D2's head against least squares of an augmented system, its two forms against each other, its limits."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raymtl.data.base import Arrays
from raymtl.learners import R2D2, r2d2
from raymtl.learners.classes import BELOW
from raymtl.step.meta_gradient import meta_gradient
from raymtl.tasks import binary, regression, segmentation
from raymtl.tasks.regression import REGRESSION
from raymtl.types import Batch, Params, Task
from tests.conftest import axes, episodes_of, experiment, perturbed
from tests.learners.laws import (
    assert_gradient_of_finite_differences,
    first,
)
from tests.narrowing import present, shared_inputs

pytestmark = pytest.mark.usefixtures("float64")


def least_squares(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """The ridge solution as the least squares of [X; sqrt(ridge) I] W = [Y; 0], which no form of ours solves."""
    rows = torch.cat([x, ridge**0.5 * torch.eye(x.shape[1])])
    padded = torch.cat([y, torch.zeros(x.shape[1], y.shape[1])])
    solution: Tensor = torch.linalg.lstsq(rows, padded, driver="gelsd").solution
    return solution


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize(("num", "width"), [(4, 9), (9, 4), (6, 6)])
def test_the_primal_form_is_woodburys_form(num: int, width: int, ridge: float) -> None:
    x, y = torch.randn(num, width), torch.randn(num, 3)
    primal, woodbury = (form(x, y, torch.tensor(ridge)) for form in (r2d2.primal, r2d2.woodbury))
    torch.testing.assert_close(primal, woodbury, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(primal, least_squares(x, y, ridge), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("weighting", ["static", "uncertainty"])
@pytest.mark.parametrize(
    ("width", "unused"), [(4, "woodbury"), (9, "woodbury"), (10, "primal"), (12, "primal")]
)
def test_heads_are_ridge_regressions_in_the_smaller_form(
    width: int,
    unused: str,
    weighting: str,
    arrays: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """10 support pictures, and a constant beside the features; whatever the losses' weights are."""
    monkeypatch.setattr(r2d2, unused, None)
    chosen = experiment(
        learner__name="r2d2", weighting__name=weighting, encoder__hidden=[16, width]
    )
    algorithm = chosen.build()
    params = perturbed(algorithm)
    support, query = first(episodes_of(chosen, arrays))
    rows = torch.arange(len(support.inputs)) % 5 > 0
    masked = support._replace(masks={"left": rows, "sum": rows.flip(0)})
    predictions = algorithm.predict(algorithm.adapt(params, masked), query.inputs)

    def features(inputs: Tensor, name: str) -> Tensor:
        own = {n.removeprefix("model."): v for n, v in params.items() if n.startswith("model.")}
        found = torch.func.functional_call(algorithm.model, own, (inputs,), {"output": "features"})[
            name
        ]
        return torch.cat([found, torch.ones(len(found), 1)], 1)

    wanted = {
        "left": torch.nn.functional.one_hot(support.targets["left"], 10).double(),
        "right": torch.nn.functional.one_hot(support.targets["right"], 10).double(),
        "sum": (support.targets["sum"][:, None] - 9) / 16.5**0.5,
    }
    for name, y in wanted.items():
        used = masked.masks.get(name, torch.ones_like(rows))
        ridge = float(params[f"learner.log_ridge.{name}"].detach().exp())
        head = least_squares(features(shared_inputs(support), name)[used], y[used], ridge)
        expected = features(shared_inputs(query), name) @ head
        expected = expected * params[f"learner.scale.{name}"] + params[f"learner.bias.{name}"]
        shown = y[used].any(0)
        torch.testing.assert_close(
            predictions[name][:, shown], expected[:, shown], rtol=1e-8, atol=1e-10
        )


def test_where_it_starts(arrays: dict[str, np.ndarray]) -> None:
    chosen = experiment(learner__name="r2d2", learner__ridge=0.5, learner__scale=3)
    params = chosen.build().init_params()
    own = {
        name.removeprefix("learner."): v.item()
        for name, v in params.items()
        if name.startswith("learner.")
    }
    assert own == pytest.approx(
        {f"log_ridge.{name}": -0.6931471805599453 for name in ("left", "right", "sum")}
        | {
            "scale.left": 3,
            "scale.right": 3,
            "scale.sum": 1,
            "bias.left": 0,
            "bias.right": 0,
            "bias.sum": 0,
        }
    )


def with_ridge(ridge: float, arrays: Arrays) -> tuple[dict[str, Tensor], Batch, dict[str, Tensor]]:
    """Predictions of the support set itself, that set, and the parameters."""
    chosen = experiment(
        learner__name="r2d2", learner__ridge=ridge, encoder__hidden=[20, 30], data__shots=1
    )
    algorithm = chosen.build()
    params = algorithm.init_params()
    params["learner.bias.sum"] = torch.tensor(0.7)
    support, _ = first(episodes_of(chosen, arrays))
    return algorithm.predict(algorithm.adapt(params, support), support.inputs), support, params


def test_an_infinite_ridge_gives_the_constant_head(arrays: dict[str, np.ndarray]) -> None:
    predictions, _, _ = with_ridge(1e14, arrays)
    torch.testing.assert_close(predictions["sum"], torch.full((10, 1), 0.7), rtol=0, atol=1e-10)
    torch.testing.assert_close(predictions["left"], torch.zeros(10, 10), rtol=0, atol=1e-10)


def test_no_ridge_interpolates_the_support_set(arrays: dict[str, np.ndarray]) -> None:
    predictions, support, params = with_ridge(1e-12, arrays)
    expected = (support.targets["sum"][:, None] - 9) / 16.5**0.5 + 0.7
    torch.testing.assert_close(predictions["sum"], expected, rtol=0, atol=1e-5)
    one_hot = (
        torch.nn.functional.one_hot(support.targets["left"], 10) * params["learner.scale.left"]
    )
    torch.testing.assert_close(predictions["left"], one_hot.detach().double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("own", ["log_ridge", "scale", "bias.sum", ""])
@pytest.mark.parametrize("hidden", [[12, 8], [12, 16]])
def test_the_meta_gradient_equals_finite_differences(
    own: str, hidden: list[int], arrays: dict[str, np.ndarray]
) -> None:
    """For lambda, alpha and beta, then for all parameters together; in the primal form and in Woodbury's."""
    chosen = experiment(learner__name="r2d2", weighting__name="equal", encoder__hidden=hidden)
    assert_gradient_of_finite_differences(chosen, arrays, f"learner.{own}" if own else "")


def test_absent_classes_are_the_least_likely(arrays: dict[str, np.ndarray]) -> None:
    chosen = axes("hard", "static", "r2d2")
    algorithm = chosen.build()
    support, query = first(episodes_of(chosen, arrays))
    support = support._replace(masks={"left": support.targets["left"] != 3})
    logits = algorithm.predict(algorithm.adapt(perturbed(algorithm), support), query.inputs)["left"]
    shown = torch.cat([logits[:, :3], logits[:, 4:]], dim=1)
    torch.testing.assert_close(logits[:, 3], shown.amin(1) - BELOW)


def test_a_task_without_any_label_predicts_a_constant(arrays: dict[str, np.ndarray]) -> None:
    chosen = axes("hard", "static", "r2d2")
    algorithm = chosen.build()
    params = perturbed(algorithm)
    support, query = first(episodes_of(chosen, arrays))
    nothing = torch.zeros(len(support.inputs), dtype=torch.bool)
    support = support._replace(masks={"left": nothing, "sum": nothing})
    predictions = algorithm.predict(algorithm.adapt(params, support), query.inputs)
    assert not predictions["left"].any()
    assert (predictions["sum"] == params["learner.bias.sum"]).all()


def test_hidden_labels_may_be_no_numbers(arrays: dict[str, np.ndarray]) -> None:
    chosen = experiment(learner__name="r2d2", data__tasks=["sum"])
    algorithm = chosen.build()
    episodes = episodes_of(chosen, arrays)
    target = episodes.support.targets["sum"].double()
    target[:, ::3] = torch.nan
    support = episodes.support._replace(targets={"sum": target}, masks={"sum": target.isfinite()})
    meta = meta_gradient(algorithm, perturbed(algorithm), episodes._replace(support=support))
    assert all(gradient.isfinite().all() for gradient in meta.grads.values())


def test_it_says_which_task_it_cannot_learn() -> None:
    assert R2D2().check(experiment().data.make_tasks()) is None
    odd = Task(
        "odd",
        REGRESSION,
        1,
        lambda shape: nn.Identity(),
        torch.mul,
        {},
        lambda p: p,
        quadratic=True,
    )
    assert "that of task 'odd' is a Identity" in present(R2D2().check([odd]))
    for task in (
        regression("odd", 0.0, 1.0, loss="huber"),
        regression("odd", (0.0, 1.0), (1.0, 1.0)),
        binary("odd"),
        segmentation("odd", 2, (8, 8)),
    ):
        assert "numbers under squared error, and task 'odd' has others" in present(
            R2D2().check([task])
        )


def test_a_regression_without_weight_predicts_a_constant(arrays: dict[str, np.ndarray]) -> None:
    """Its target is read off the objective, which says nothing of it."""
    chosen = axes("hard", "static", "r2d2")
    algorithm = chosen.build()
    params = perturbed(algorithm)
    support, query = first(episodes_of(chosen, arrays))

    def objective(params: Params, predictions: Mapping[str, Tensor], batch: Batch) -> Tensor:
        loss = nn.functional.cross_entropy(predictions["left"], batch.targets["left"])
        return loss + 0 * predictions["sum"].square().sum()

    predicted = algorithm.predict(
        algorithm.learner.adapt(algorithm.model, params, support, objective), query.inputs
    )
    assert (predicted["sum"] == params["learner.bias.sum"]).all()
    assert predicted["left"].any()
