"""DSelect-k."""

import itertools
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raymtl.encoders import MLPSpec
from raymtl.sharing import DSelectKSpec
from raymtl.sharing.dselect_k import entropy, selectors, smooth_step
from raymtl.tasks import classification, regression
from raymtl.types import UserError
from tests.sharing.laws import assert_predicts_as_hard_sharing

pytestmark = pytest.mark.usefixtures("float64")

TASKS = (classification("a", 4), regression("b", 0.0, 1.0))
SHAPE = (6,)


def build(**values: Any) -> Any:
    spec = DSelectKSpec(**values)
    return spec.build(TASKS, [MLPSpec(hidden=(5, 4)).build(SHAPE) for _ in range(spec.num_experts)])


@pytest.mark.parametrize("gamma", [0.1, 1.0, 3.0])
def test_the_smooth_step_is_the_papers_cubic(
    gamma: float,
) -> None:
    """Outside of its width it is 0 and 1 exactly."""
    outside = torch.tensor([0.5, 0.51, 2.0, 100.0]) * gamma
    assert (smooth_step(outside, gamma) == 1).all()
    assert (smooth_step(-outside, gamma) == 0).all()
    z = torch.linspace(-0.5, 0.5, 21) * gamma
    cubic = -2 / gamma**3 * z**3 + 3 / (2 * gamma) * z + 0.5
    torch.testing.assert_close(smooth_step(z, gamma), cubic)
    assert (smooth_step(z, gamma).diff() > 0).all()


def test_the_step_has_a_continuous_derivative() -> None:
    z = torch.tensor([-0.5 - 1e-9, -0.5 + 1e-9, 0.5 - 1e-9, 0.5 + 1e-9], requires_grad=True)
    (slope,) = torch.autograd.grad(smooth_step(z, 1.0).sum(), z)
    torch.testing.assert_close(slope, torch.zeros(4), atol=1e-7, rtol=0)


@pytest.mark.parametrize("num_experts", range(1, 10))
def test_a_selector_is_in_the_simplex(num_experts: int) -> None:
    num_bits = math.ceil(math.log2(num_experts))
    weights = selectors(torch.randn(50, num_bits), num_experts, 1.5)
    assert weights.shape == (50, num_experts) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(50))


@pytest.mark.parametrize("num_experts", range(1, 10))
def test_codes_and_experts_match_one_to_one(num_experts: int) -> None:
    num_bits = math.ceil(math.log2(num_experts))
    selected = set()
    for bits in itertools.product((0, 1), repeat=num_bits):
        (weights,) = selectors(torch.tensor([bits]).double() - 0.5, num_experts, 1.0)
        expert = int(weights.argmax())
        assert weights[expert] == 1 and weights.count_nonzero() == 1
        code = sum(bit << j for j, bit in enumerate(bits))
        assert expert == (code if code < num_experts else code - 2 ** (num_bits - 1))
        selected.add(expert)
    assert selected == set(range(num_experts))


def test_a_selector_is_the_papers_product_over_bits() -> None:
    z = torch.randn(3) * 0.2
    (weights,) = selectors(z[None], 8, 1.0)
    step = smooth_step(z, 1.0)
    for expert in range(8):
        expected = math.prod(float(step[j] if expert >> j & 1 else 1 - step[j]) for j in range(3))
        assert weights[expert].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gates", ["per_input", "static"])
@pytest.mark.parametrize("num_experts", [2, 3, 4, 5])
def test_gates_lie_in_the_simplex(gates: str, num_experts: int) -> None:
    """Decided ones have k experts at most."""
    model, inputs = build(num_experts=num_experts, gates=gates), torch.randn(7, *SHAPE)
    for scale in (1.0, 1e9):
        for gate in model.gates.values():
            with torch.no_grad():
                gate.codes *= scale
            weights, chosen = gate(inputs)
            assert (
                weights.shape == (7, num_experts)
                and chosen.shape == (7, 2, num_experts)
                and (weights >= 0).all()
            )
            torch.testing.assert_close(weights.sum(1), torch.ones(7))
            if scale > 1:
                assert ((chosen == 0) | (chosen == 1)).all()
                assert (weights.count_nonzero(dim=1) <= 2).all()


def test_only_static_gates_ignore_the_input() -> None:
    inputs = torch.randn(2, *SHAPE)
    for gates, same in (("static", True), ("per_input", False)):
        one, two = build(gates=gates).gates["a"](inputs)[0]
        assert torch.equal(one, two) == same


@pytest.mark.parametrize("gates", ["per_input", "static"])
def test_one_expert_is_hard_sharing(gates: str) -> None:
    model = build(num_experts=1, k=1, gates=gates)
    assert_predicts_as_hard_sharing(model, model.experts[0], TASKS, SHAPE)


def test_entropy_has_a_finite_gradient_when_decided() -> None:
    """It is the entropy of the selectors."""
    probabilities = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[1.0, 0.0], [0.1, 0.9]]])
    expected = -torch.special.xlogy(probabilities, probabilities).sum() / 2
    torch.testing.assert_close(entropy(probabilities), expected)
    z = torch.tensor([[[0.5, -0.5]], [[0.7, 0.0]]], requires_grad=True)
    value = entropy(selectors(z, 4, 1.0))
    (gradient,) = torch.autograd.grad(value, z)
    assert gradient.isfinite().all()
    torch.testing.assert_close(value, torch.tensor(2.0).log() / 2)


@pytest.mark.parametrize("gates", ["per_input", "static"])
def test_entropy_is_counted_once(gates: str) -> None:
    """As an auxiliary term or as a penalty, never as both."""
    model, inputs = build(gates=gates, entropy=0.3), torch.randn(5, *SHAPE)
    expected = 0.3 * sum(entropy(gate(inputs)[1]) for gate in model.gates.values())
    terms, penalty = model.auxiliary(inputs), model.penalty(dict(model.named_parameters()))
    if gates == "static":
        assert not terms
        torch.testing.assert_close(penalty, expected)
    else:
        assert penalty == 0
        torch.testing.assert_close(terms["entropy"], expected)


def test_descending_the_entropy_decides() -> None:
    z = (torch.randn(1, 2, 3) * 0.01).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        entropy(selectors(z, 5, 1.0)).backward()
        optimizer.step()
    assert entropy(selectors(z, 5, 1.0)) < 1e-3


def test_more_selectors_than_experts_are_refused() -> None:
    with pytest.raises(UserError, match=r"sharing\.k: expected at most the 2 experts .* got 3"):
        DSelectKSpec(num_experts=2, k=3)


@pytest.mark.parametrize("field", ["num_experts", "k", "gamma"])
def test_none_at_all_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        DSelectKSpec(**{field: 0})
