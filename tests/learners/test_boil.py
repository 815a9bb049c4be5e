"""BOIL: MAML on the body alone."""

import numpy as np
import pytest
import torch

from raymtl.learners import ANIL, BOIL, MAML
from tests.conftest import SHARING, axes, episodes_of, experiment, perturbed
from tests.learners.laws import (
    first,
)
from tests.learners.test_learners import DIM, Quadratic

pytestmark = pytest.mark.usefixtures("float64")


def test_without_heads_it_is_maml() -> None:
    """On a quadratic, where the heads have nothing to learn."""
    quadratic, alpha, steps = Quadratic(), 0.07, 3
    start, computed = quadratic.meta_gradient(BOIL(inner_lr=alpha, inner_steps=steps))
    contraction = torch.linalg.matrix_power(torch.eye(DIM) - alpha * quadratic.A, steps)
    adapted = quadratic.a + contraction @ (start - quadratic.a)
    torch.testing.assert_close(
        computed, contraction @ quadratic.B @ (adapted - quadratic.b), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("sharing", SHARING)
def test_with_anil_it_parts_what_maml_moves(sharing: str, arrays: dict[str, np.ndarray]) -> None:
    """Names apart and together all; and in one step each part moves as in maml."""
    chosen = axes(sharing, "static", "maml").override({"learner.inner_steps": 1})
    algorithm = chosen.build()
    params = perturbed(algorithm)
    support, _ = first(episodes_of(chosen, arrays))
    heads, body, whole = (
        learner(inner_steps=1).start(params).keys() for learner in (ANIL, BOIL, MAML)
    )
    assert heads and body and not heads & body and heads | body == whole
    whole_model = algorithm.adapt(params, support)
    for learner, own in ((ANIL, heads), (BOIL, body)):
        adapted = algorithm._replace(learner=learner(inner_lr=0.05, inner_steps=1)).adapt(
            params, support
        )
        for name in params:
            torch.testing.assert_close(
                adapted[name], whole_model[name] if name in own else params[name]
            )


def test_only_the_body_has_learned_rates(arrays: dict[str, np.ndarray]) -> None:
    algorithm = experiment(learner__name="boil", learner__learn_inner_lr=True).build()
    params = algorithm.init_params()
    rates = {
        name.removeprefix("learner.log_inner_lr.") for name in params if name.startswith("learner.")
    }
    assert rates == {n for n, _ in algorithm.model.named_parameters() if not n.startswith("heads.")}
