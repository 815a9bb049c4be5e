"""Adversarial shared-private learning."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from raymtl.encoders import MLPSpec
from raymtl.sharing import AdversarialSpec
from raymtl.sharing.adversarial import reversed_gradient
from raymtl.tasks import classification, regression

pytestmark = pytest.mark.usefixtures("float64")

TASKS = (classification("a", 4), regression("b", 0.0, 1.0), classification("c", 2))
NAMES = tuple(task.name for task in TASKS)
SHAPE = (6,)


def build(**values: float) -> Any:
    return AdversarialSpec(**values).build(
        TASKS, [MLPSpec(hidden=(5, 4)).build(SHAPE) for _ in range(4)]
    )


def own_inputs() -> dict[str, torch.Tensor]:
    return {name: torch.randn(3 + i, *SHAPE) for i, name in enumerate(NAMES)}


def cross_entropy(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Without any reversal, by torch's own function."""
    logits = torch.cat([model.discriminator(model.shared_encoder(inputs[name])) for name in NAMES])
    labels = torch.cat(
        [torch.full((len(inputs[name]),), label) for label, name in enumerate(NAMES)]
    )
    return F.cross_entropy(logits, labels)


def test_reversal_negates_and_scales_the_gradient() -> None:
    """Forward it is the identity."""
    x, back = torch.randn(5, requires_grad=True), torch.randn(5)
    y = reversed_gradient(x, 0.3)
    assert torch.equal(y, x)
    (gradient,) = torch.autograd.grad(y, x, back)
    assert torch.equal(gradient, -0.3 * back)


def test_only_the_trunks_gradient_is_reversed() -> None:
    """The trunk gets -lambda times the gradient, the discriminator its own."""
    model, inputs = build(reversal=0.3), own_inputs()
    ours, plain = model.auxiliary(inputs)["adversarial"], cross_entropy(model, inputs)
    torch.testing.assert_close(ours, plain)
    for module, factor in ((model.shared_encoder, -0.3), (model.discriminator, 1.0)):
        leaves = list(module.parameters())
        for mine, theirs in zip(
            torch.autograd.grad(ours, leaves, retain_graph=True),
            torch.autograd.grad(plain, leaves, retain_graph=True),
            strict=True,
        ):
            assert theirs.any()
            torch.testing.assert_close(mine, factor * theirs)


def test_discriminator_and_trunk_move_against_each_other() -> None:
    """Descending the term makes the discriminator better, and the trunk harder to read."""
    model, inputs = build(reversal=1.0), own_inputs()
    before = cross_entropy(model, inputs)
    for module, better in ((model.discriminator, True), (model.shared_encoder, False)):
        leaves = list(module.parameters())
        grads = torch.autograd.grad(model.auxiliary(inputs)["adversarial"], leaves)
        with torch.no_grad():
            for leaf, gradient in zip(leaves, grads, strict=True):
                leaf -= 1e-3 * gradient
            assert (cross_entropy(model, inputs) < before) == better
            for leaf, gradient in zip(leaves, grads, strict=True):
                leaf += 1e-3 * gradient


def test_one_shared_input_leaves_the_discriminator_guessing() -> None:
    """The mean over labels of the cross-entropy of the same scores is at least log K, and that at equal scores."""
    model, inputs = build(), torch.randn(5, *SHAPE)
    guess = torch.log(torch.tensor(3.0))
    for _ in range(20):
        torch.nn.init.normal_(model.discriminator.weight)
        assert model.auxiliary(inputs)["adversarial"] >= guess
    torch.nn.init.zeros_(model.discriminator.weight)
    torch.nn.init.zeros_(model.discriminator.bias)
    torch.testing.assert_close(model.auxiliary(inputs)["adversarial"], guess)


def test_a_shared_input_is_every_tasks_own() -> None:
    model, inputs = build(), torch.randn(5, *SHAPE)
    apart = model.auxiliary(dict.fromkeys(NAMES, inputs))
    for name, value in model.auxiliary(inputs).items():
        torch.testing.assert_close(value, apart[name])


def test_orthogonality_is_the_papers_norm() -> None:
    """Divided by the squared number of examples."""
    model, inputs = build(orthogonality=0.7), own_inputs()
    expected = torch.zeros(())
    for name, x in inputs.items():
        shared, private = model.shared_encoder(x), model.task_encoders[name](x)
        for i in range(4):
            for j in range(4):
                expected = expected + (shared[:, i] @ private[:, j]) ** 2 / len(x) ** 2
    torch.testing.assert_close(model.auxiliary(inputs)["orthogonality"], 0.7 * expected)


def test_orthogonality_is_zero_for_disjoint_features() -> None:
    model = build()
    with torch.no_grad():
        for encoder, kept in (
            (model.shared_encoder, slice(0, 3)),
            *((e, slice(3, 6)) for e in model.task_encoders.values()),
        ):
            first = encoder.stages[0][1]
            first.bias.zero_()
            encoder.stages[1][1].bias.zero_()
            mask = torch.zeros(6)
            mask[kept] = 1
            first.weight *= mask
        inputs = torch.randn(8, *SHAPE)
        inputs[:4, :3] = 0
        inputs[4:, 3:] = 0
    assert model.shared_encoder(inputs).any()
    assert model.auxiliary(inputs)["orthogonality"] == 0


def test_heads_read_shared_and_private_features() -> None:
    model, inputs = build(), torch.randn(3, *SHAPE)
    for name, features in model.features(inputs, NAMES).items():
        expected = torch.cat([model.shared_encoder(inputs), model.task_encoders[name](inputs)], 1)
        torch.testing.assert_close(features, expected)
        assert model.heads[name].in_features == 8


def test_no_prediction_depends_on_the_discriminator() -> None:
    model = build()
    assert not any(name.startswith("discriminator") for name in model.shared)
    predictions = sum(value.sum() for value in model(torch.randn(3, *SHAPE)).values())
    grads = torch.autograd.grad(
        predictions, list(model.discriminator.parameters()), allow_unused=True
    )
    assert all(gradient is None for gradient in grads)


@pytest.mark.parametrize("field", ["reversal", "orthogonality"])
def test_negative_strengths_are_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        AdversarialSpec(**{field: -0.1})
