"""Laws of the sharing architectures, over the whole union."""

import pytest
import torch
from torch.func import functional_call

from raymtl.encoders import ConvSpec, MLPSpec
from raymtl.sharing import CrossStitchSpec, SoftSpec
from raymtl.tasks import classification, regression
from raymtl.types import Task
from tests.conftest import SHARING, experiment

TASKS = (classification("a", 4), classification("b", 3), regression("c", 0.0, 1.0))
SHAPE = (1, 8, 8)
ENCODERS = (MLPSpec(hidden=(7, 6)), ConvSpec(channels=(4, 8)), ConvSpec(channels=(4,), norm="none"))


def build(name: str, encoder, tasks: tuple[Task, ...] = TASKS):
    spec = experiment(sharing__name=name).sharing
    return spec.build(tasks, [encoder.build(SHAPE) for _ in range(spec.num_encoders(len(tasks)))])


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", SHARING)
def test_predicts_every_task_and_names_what_is_shared_truly(name: str, encoder) -> None:
    model = build(name, encoder)
    predictions = model(torch.randn(5, *SHAPE))
    assert {task.name: predictions[task.name].shape for task in TASKS} == {"a": (5, 4), "b": (5, 3), "c": (5, 1)}
    named = dict(model.named_parameters())
    touched = {
        task.name: {
            name
            for name, gradient in zip(
                named,
                torch.autograd.grad(predictions[task.name].sum(), named.values(), allow_unused=True, retain_graph=True),
                strict=True,
            )
            if gradient is not None
        }
        for task in TASKS
    }
    shared = {name for name in named if sum(name in touched[task] for task in touched) > 1}
    assert shared == model.shared


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", SHARING)
def test_own_inputs_give_what_a_shared_input_gives(name: str, encoder) -> None:
    model = build(name, encoder)
    own = {task.name: torch.randn(3 + i, *SHAPE) for i, task in enumerate(TASKS)}
    apart = model(own)
    for task in TASKS:
        torch.testing.assert_close(apart[task.name], model(own[task.name])[task.name])


@pytest.mark.parametrize("name", SHARING)
def test_one_task_alone_equals_hard_sharing(name: str) -> None:
    alone, hard = (build(kind, ENCODERS[0], TASKS[:1]) for kind in (name, "hard"))
    hard.load_state_dict({k: v for k, v in alone.state_dict().items() if k != "stitches"})
    inputs = torch.randn(4, *SHAPE)
    torch.testing.assert_close(alone(inputs)["a"], hard(inputs)["a"])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_cross_stitch_with_the_identity_is_independent_networks(encoder) -> None:
    towers = [encoder.build(SHAPE) for _ in TASKS]
    stitched = CrossStitchSpec(own=1.0).build(TASKS, towers)
    independent = SoftSpec(strength=0.0).build(TASKS, towers)
    independent.heads = stitched.heads
    inputs = torch.randn(4, *SHAPE)
    for task in TASKS:
        torch.testing.assert_close(stitched(inputs)[task.name], independent(inputs)[task.name])


def test_cross_stitch_starts_from_rows_that_sum_to_one() -> None:
    stitches = build("cross_stitch", ENCODERS[0]).stitches
    torch.testing.assert_close(stitches.sum(-1), torch.ones(2, 3))
    assert torch.allclose(stitches.diagonal(dim1=1, dim2=2), torch.tensor(0.9))


def test_the_gradient_of_the_soft_penalty_is_twice_the_distance_to_the_mean() -> None:
    model = SoftSpec(strength=0.3).build(TASKS, [MLPSpec(hidden=(4,)).build(SHAPE) for _ in TASKS])
    params = dict(model.named_parameters())
    name = "encoders.1.stages.0.1.weight"
    (gradient,) = torch.autograd.grad(model.penalty(params), [params[name]])
    mean = torch.stack([params[f"encoders.{i}.stages.0.1.weight"] for i in range(3)]).mean(0)
    torch.testing.assert_close(gradient, 2 * 0.3 * (params[name] - mean))


def test_only_soft_sharing_has_a_penalty() -> None:
    for name in SHARING:
        model = build(name, ENCODERS[0])
        assert (model.penalty(dict(model.named_parameters())) > 0) == (name == "soft")


@pytest.mark.parametrize("name", SHARING)
def test_parameters_are_all_reached_from_outside(name: str) -> None:
    """The inner loop works on a copy: nothing of the module's own may remain in the prediction."""
    model = build(name, ENCODERS[0])
    zeros = {key: torch.zeros_like(value) for key, value in model.named_parameters()}
    predictions = functional_call(model, zeros, (torch.randn(2, *SHAPE),))
    assert all(bool((value == 0).all()) for value in predictions.values())
