"""Where inner loops diverge: on a quadratic, whose every step is known, and for every learner that takes steps."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from raymtl.learners import MAML, Reptile
from raymtl.learners.diverging import FIRST_STEPS, GROWTH, divergence
from raymtl.step.algorithm import Algorithm
from raymtl.types import Batch
from raymtl.weighting import StaticSpec
from tests.conftest import LEARNERS, axes, episodes_of, possible
from tests.learners.laws import first
from tests.learners.test_learners import DIM, Quadratic, Weights

pytestmark = pytest.mark.usefixtures("float64")


def on_a_quadratic(quadratic: Quadratic, learner: MAML | Reptile) -> Any:
    model = Weights([quadratic.task])
    algorithm = Algorithm((quadratic.task,), model, StaticSpec().build([quadratic.task]), learner)
    support = Batch(torch.zeros(1, 1), {"w": torch.zeros(1)}, {})
    return divergence(learner, model, algorithm.init_params(), support, algorithm.objective)


def losses(quadratic: Quadratic, rate: float, steps: int) -> list[float]:
    w, found = torch.linspace(-1, 1, DIM), []
    for _ in range(steps + 1):
        found.append(float((w - quadratic.a) @ quadratic.A @ (w - quadratic.a) / 2))
        w = w - rate * quadratic.A @ (w - quadratic.a)
    return found


@pytest.mark.parametrize("kind", [MAML, Reptile])
@pytest.mark.parametrize("rate", [1.5, 4.0, 1e30])
def test_the_largest_stable_half_step_is_found(
    kind: type[MAML] | type[Reptile], rate: float
) -> None:
    """And the step at which the loop diverges."""
    quadratic = Quadratic()
    found = on_a_quadratic(quadratic, kind(inner_lr=rate, inner_steps=40))
    way = losses(quadratic, rate, 40)
    step = next(i for i, loss in enumerate(way) if not loss <= GROWTH * way[0])
    assert (found.step, found.before) == (step, pytest.approx(way[0]))
    assert found.loss == pytest.approx(way[step], rel=1e-9)
    halves = [rate / 2**h for h in range(1, 21)]
    lowering = [
        r
        for r in halves
        if losses(quadratic, r, FIRST_STEPS) == sorted(losses(quadratic, r, FIRST_STEPS))[::-1]
    ]
    assert found.rate == (lowering[0] if lowering else None)
    assert (rate == 1e30) == (found.rate is None)
    assert f"after inner step {step} the support loss is" in str(found)
    assert found.rate is None or f"to {found.rate:.2g}" in str(found)


def test_stable_loops_are_left_alone() -> None:
    quadratic = Quadratic()
    assert on_a_quadratic(quadratic, MAML(inner_lr=0.1, inner_steps=40)) is None
    assert on_a_quadratic(quadratic, MAML(inner_lr=4.0, inner_steps=0)) is None


@pytest.mark.slow
@pytest.mark.parametrize("learner", LEARNERS)
def test_every_stepping_learner_says_where_it_goes(
    learner: str, arrays: dict[str, np.ndarray]
) -> None:
    assert possible("hard", "static", learner)
    chosen = axes("hard", "static", learner)
    if not chosen.learner.num_steps:
        algorithm = chosen.build()
        support = first(episodes_of(chosen, arrays)).support
        assert (
            divergence(
                chosen.learner,
                algorithm.model,
                algorithm.init_params(),
                support,
                algorithm.objective,
            )
            is None
        )
        return
    chosen = chosen.override({"learner.inner_lr": 1e6})
    algorithm = chosen.build()
    support = first(episodes_of(chosen, arrays)).support
    found = divergence(
        chosen.learner, algorithm.model, algorithm.init_params(), support, algorithm.objective
    )
    if found is None:  # boil: units that are dead put out the same, whatever their weights
        adapted = algorithm.adapt(algorithm.init_params(), support)
        assert (
            algorithm.objective(adapted, algorithm.predict(adapted, support.inputs), support) < 100
        )
        assert learner == "boil"
        return
    assert 1 <= found.step <= chosen.learner.num_steps
    assert not found.loss <= GROWTH * found.before
    if found.rate is not None:
        assert math.log2(1e6 / found.rate) == pytest.approx(round(math.log2(1e6 / found.rate)))
