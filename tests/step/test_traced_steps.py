"""Steps by traced graphs are the steps as they are written, for every member of the three axes."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from raymtl.config import Experiment
from raymtl.step import traced as tracing
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import meta_gradient, update_after_step
from raymtl.step.traced import Tracer
from tests.conftest import episodes_of, perturbed, star, two_steps, with_missing_labels

FEW = [
    ("hard", "static", "maml"),
    ("hard", "pcgrad", "maml"),
    ("hard", "uncertainty", "protonet"),
    ("hard", "dwa", "anil"),
]
"""Weights that are given, by gradients, learned, and from state; steps through which, none, some."""

STEPS = 3


@pytest.fixture(autouse=True)
def _every_shape_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "PATIENCE", 0)


def steps(
    chosen: Experiment, execution: ExecutionConfig, arrays: Mapping[str, np.ndarray]
) -> list[torch.Tensor]:
    """The losses and gradients of a few steps along the gradient, with labels missing."""
    algorithm = chosen.build()
    params = perturbed(algorithm)
    found = []
    for step in range(STEPS):
        episodes = with_missing_labels(episodes_of(chosen, arrays, step=step))
        meta = meta_gradient(algorithm, params, episodes, execution=execution, step=step)
        with torch.no_grad():
            for name, value in params.items():
                value -= 0.01 * meta.grads[name]
        if chosen.weighting.needs_post_step_losses:
            update_after_step(algorithm, params, episodes, meta, execution=execution)
        found += [meta.losses, meta.weights, *meta.grads.values()]
    return found


def assert_traced(
    combination: tuple[str, str, str],
    execution: ExecutionConfig,
    arrays: Mapping[str, np.ndarray],
) -> None:
    chosen = two_steps(*combination).override({"data.tasks": ["left", "right"]})
    tracer = Tracer("replay")
    plain = steps(chosen, execution, arrays)
    traced = steps(chosen, execution._replace(tracer=tracer), arrays)
    assert tracer.refusal is None
    for one, other in zip(plain, traced, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-13, equal_nan=True)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("combination", FEW, ids="-".join)
def test_traced_steps_equal_plain_steps(
    combination: tuple[str, str, str], arrays: Mapping[str, np.ndarray]
) -> None:
    assert_traced(combination, ExecutionConfig("vmap"), arrays)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("combination", star(), ids="-".join)
def test_every_members_traced_steps_equal_plain(
    combination: tuple[str, str, str], arrays: Mapping[str, np.ndarray]
) -> None:
    assert_traced(combination, ExecutionConfig("vmap"), arrays)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("execution", [ExecutionConfig("loop"), ExecutionConfig("vmap", chunk=1)])
def test_one_graph_serves_loop_and_chunks(
    execution: ExecutionConfig, arrays: Mapping[str, np.ndarray]
) -> None:
    assert_traced(("hard", "static", "maml"), execution, arrays)
