"""Domains: what they suggest, when they are searched, and how they go into Optuna and back."""

from typing import Any

import optuna
import pytest
from pydantic import TypeAdapter

from raymtl.config import Experiment, check_space, parse
from raymtl.schema.distributions import Simplex, Space, default_params, searched_values, suggest
from raymtl.types import UserError
from tests.narrowing import present

SPACE = TypeAdapter(Space).validate_python(
    {
        "weighting.weights": {
            "simplex": ["left", "right", "sum"],
            "when": {"weighting.name": "static"},
        },
        "weighting.name": {"choice": ["static", "uncertainty"], "when": {"learner.name": ["maml"]}},
        "learner.name": {"choice": ["maml", "reptile"]},
        "learner.inner_lr": {"log_uniform": ["1e-3", "1e-1"]},
        "learner.inner_steps": {"int": [1, 4]},
        "train.clip_norm": {"uniform": [1, 2]},
        "encoder.hidden": {"choice": [[8], [8, 8]]},
    }
)
DEFAULTS = Experiment().override({"encoder.name": "mlp", "encoder.hidden": [8]}).flat()


def suggestions(number: int = 60) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [suggest(SPACE, DEFAULTS, study.ask()) for _ in range(number)]


def test_drawn_values_validate_as_whole_sections() -> None:
    """And lie in their distributions."""
    for values in suggestions():
        assert 1e-3 <= values["learner.inner_lr"] <= 1e-1
        assert values["learner.inner_steps"] in (1, 2, 3, 4)
        assert 1 <= values["train.clip_norm"] <= 2
        assert values["encoder.hidden"] in ([8], [8, 8])
        Experiment().override({"encoder.name": "mlp"}).override(values)


def test_conditions_decide_what_is_searched() -> None:
    seen = suggestions()
    for values in seen:
        assert ("weighting.name" in values) == (values["learner.name"] == "maml")
        weighting = values.get("weighting.name", DEFAULTS["weighting.name"])
        assert ("weighting.weights.left" in values) == (weighting == "static")
    assert len({values.get("weighting.name") for values in seen}) == 3


def test_simplex_weights_sum_to_one_and_are_uniform() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [Simplex(simplex=("a", "b", "c")).suggest(study.ask(), "w") for _ in range(3000)]
    assert all(sum(weights.values()) == pytest.approx(1) for weights in drawn)
    # On the uniform simplex of three, P(w > 1/2) = 1/4 for each weight.
    for name in ("w.a", "w.b", "w.c"):
        assert sum(weights[name] > 0.5 for weights in drawn) / 3000 == pytest.approx(0.25, abs=0.03)


def test_own_values_round_trip_through_optuna() -> None:
    defaults = {**DEFAULTS, "learner.inner_lr": 0.05, "train.clip_norm": 1.5}
    params = present(default_params(SPACE, defaults))
    study = optuna.create_study()
    study.enqueue_trial(params)
    values = suggest(SPACE, defaults, study.ask())
    assert values["learner.inner_lr"] == pytest.approx(0.05)
    assert values["encoder.hidden"] == [8]
    assert [
        values[f"weighting.weights.{name}"] for name in ("left", "right", "sum")
    ] == pytest.approx([1 / 3] * 3)
    assert default_params(SPACE, {**defaults, "learner.inner_lr": 0.5}) is None


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (
            {"learner.inner_lrr": {"uniform": [0, 1]}},
            "search.learner.inner_lrr: unknown key. Did you mean learner.inner_lr",
        ),
        (
            {"learner.inner_lr": {"uniform": [1, 0]}},
            r"search.learner.inner_lr.uniform: expected \[low, high\] with low < high",
        ),
        (
            {"learner.inner_lr": {"normal": [1, 0]}},
            "search.learner.inner_lr: expected one of log_uniform",
        ),
        (
            {"learner.name": {"choice": ["maml", "mamel"]}},
            "protonet, r2d2, reptile, t_net, umtl, warp_grad, got 'mamel'. Did you mean maml",
        ),
        ({"learner.inner_lr": {"uniform": [-1, 1]}}, "greater than 0"),
        (
            {
                "learner.name": {"choice": ["maml", "reptile"]},
                "weighting.name": {"choice": ["static", "pcgrad"]},
            },
            "Exclude it with a `when:`",
        ),
        (
            {"learner.inner_steps": {"uniform": [1, 3]}},
            "which cannot run .learner.inner_steps: expected a valid integer",
        ),
        (
            {"train.steps": {"int": [10, 30]}},
            "search.train.steps: expected a value that trials may differ in",
        ),
        (
            {"learner.inner_lr": {"uniform": [0.1, 1], "when": {"learner.name": "mamll"}}},
            "expected a condition that can hold",
        ),
        ({"weighting.weights": {"simplex": ["left", "left"]}}, "expected every name once"),
        ({"learner.first_order": {"choice": [1, True]}}, "expected values that differ"),
        ({"weighting.weights": {"simplex": ["left", "middle"]}}, "expected one of the tasks"),
        (
            {"learner.inner_lr": {"uniform": [0.1, 1], "when": {"sharing.nam": "hard"}}},
            "when.sharing.nam: unknown key",
        ),
    ],
)
def test_impossible_spaces_are_refused(space: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_space(parse({"search": space}))


def test_conditions_that_wait_for_each_other_are_refused() -> None:
    space = {
        "learner.inner_lr": {"uniform": [0.1, 1], "when": {"train.lr": 1}},
        "train.lr": {"uniform": [0.1, 1], "when": {"learner.inner_lr": 1}},
    }
    with pytest.raises(UserError, match="wait for each other"):
        check_space(parse({"search": space}))


def test_searched_values_are_exactly_the_suggested() -> None:
    weights = {f"weighting.weights.{task}" for task in ("left", "right", "sum")}
    for drawn in suggestions():
        values = Experiment().override({"encoder.name": "mlp"} | drawn).flat()
        found = searched_values(SPACE, values)
        assert drawn.keys() <= found.keys() <= SPACE.keys() | weights
        assert all(values[key] == value for key, value in found.items())
