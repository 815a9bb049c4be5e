"""Static weights."""

import torch

from raymtl.weighting import StaticSpec
from tests.narrowing import present
from tests.weighting import ABC


def test_weights_sum_to_k_and_keep_ratios() -> None:
    weights = StaticSpec(weights={"a": 3.0, "b": 1.0}).build(ABC[:2])(torch.rand(2))
    torch.testing.assert_close(weights, torch.tensor([1.5, 0.5]))


def test_a_task_without_a_weight_has_one() -> None:
    """A weight of an unknown task is refused."""
    torch.testing.assert_close(
        StaticSpec(weights={"b": 4.0}).build(ABC)(), torch.tensor([0.5, 2.0, 0.5])
    )
    assert StaticSpec(weights={"b": 4.0}).check(["a", "b"]) is None
    key, sentence = present(StaticSpec(weights={"z": 4.0}).check(["a", "b"]))
    assert key == "weights.z" and "['a', 'b']" in sentence
