"""Laws of the sharing architectures, over the whole union, in float64."""

import functools
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from raymtl.encoders import Conv4Spec, ConvSpec, Encoder, LeNetSpec, MLPSpec, ResNet18Spec
from raymtl.sharing import CrossStitchSpec, SoftSpec
from raymtl.tasks import classification, regression
from raymtl.types import Task
from tests.conftest import SHARING, axes, experiment
from tests.narrowing import checked
from tests.sharing.laws import adapted_outputs, assert_vmap_is_a_loop, moved, touched

pytestmark = pytest.mark.usefixtures("float64")

TASKS = (classification("a", 4), classification("b", 3), regression("c", 0.0, 1.0))
NAMES = tuple(task.name for task in TASKS)
SHAPE = (1, 8, 8)
MLP = (MLPSpec(hidden=(7, 6)), SHAPE)
ENCODERS = {
    "mlp": MLP,
    "conv": (ConvSpec(channels=(4, 8)), SHAPE),
    "conv4": (Conv4Spec(width=4), (1, 16, 16)),
    "lenet": (LeNetSpec(maps=(2, 3), hidden=(6, 5)), (1, 16, 16)),
}
over_the_union = pytest.mark.parametrize("name", SHARING)
over_the_encoders = pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)


def build(
    name: str,
    encoder: Any = MLP,
    tasks: tuple[Task, ...] = TASKS,
    isolate_task_graphs: bool = False,
) -> Any:
    spec, (encoder_spec, shape) = axes(name, "static", "maml").sharing, encoder
    one = encoder_spec.build(shape)
    if spec.check(tasks, one):  # it takes no tasks of different sizes
        tasks = tuple(classification(task.name, 4) for task in tasks)
    assert spec.check(tasks, one) is None
    encoders = [encoder_spec.build(shape) for _ in range(spec.num_encoders(len(tasks)))]
    return spec.build(tasks, encoders, isolate_task_graphs)


class Copies:
    """Gives copies of an encoder where a spec builds new ones."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def build(self, input_shape: tuple[int, ...]) -> Encoder:
        return deepcopy(self.encoder)


@functools.cache
def copies_of_resnet18() -> Copies:
    """Of one without numbers, built once, since that takes longer than to copy it."""
    with torch.device("meta"):
        return Copies(ResNet18Spec().build(SHAPE))


@over_the_encoders
@over_the_union
def test_every_task_is_predicted(name: str, encoder: tuple[Any, ...]) -> None:
    """What is named as shared is what several tasks reach."""
    model = build(name, encoder)
    predictions = model(torch.randn(5, *encoder[1]))
    assert {task: value.shape for task, value in predictions.items()} == {
        task: (5, num_outputs) for task, num_outputs in model.out_features.items()
    }
    assert tuple(predictions) == NAMES
    reached = {task: touched(predictions[task], model) for task in NAMES}
    everything = {name for name, _ in model.named_parameters()}
    assert {
        name for name in everything if sum(name in of_task for of_task in reached.values()) > 1
    } == model.shared


@over_the_encoders
@over_the_union
def test_every_parameter_serves_some_output(name: str, encoder: tuple[Any, ...]) -> None:
    model = build(name, encoder)
    inputs = torch.randn(5, *encoder[1])
    outputs = [*model(inputs).values(), *model(inputs, output="auxiliary").values()]
    served = set().union(*(touched(output, model) for output in outputs if output.requires_grad))
    penalty = model.penalty(dict(model.named_parameters()))
    if penalty.requires_grad:
        served |= touched(penalty, model)
    assert served == {name for name, _ in model.named_parameters()}


@over_the_encoders
@over_the_union
def test_own_inputs_give_what_a_shared_input_gives(name: str, encoder: tuple[Any, ...]) -> None:
    own = {task: torch.randn(3 + i, *encoder[1]) for i, task in enumerate(NAMES)}
    for isolate_task_graphs in (False, True):
        model = build(name, encoder, isolate_task_graphs=isolate_task_graphs)
        predictions = model(own)
        for task in NAMES:
            torch.testing.assert_close(predictions[task], model(own[task])[task])


@pytest.mark.parametrize(("weighting", "reached"), [("pcgrad", 4), ("equal", 12)])
def test_isolated_tasks_follow_their_own_examples(weighting: str, reached: int) -> None:
    """Where gradients are asked for one by one, a task is followed through its own examples alone."""
    chosen = experiment(weighting__name=weighting)
    algorithm = chosen.build()
    inputs = {name: torch.randn(4, *chosen.data.input_shape) for name in chosen.data.task_names}
    passed: list[int] = []
    trunk = checked(algorithm.model.get_submodule("encoders.0"), Encoder)

    def remember(_: nn.Module, __: Any, grads: Any) -> None:
        passed.append(len(grads[0]))

    trunk.stages[-1].register_full_backward_hook(remember)
    algorithm.model(inputs)["left"].sum().backward()
    assert passed == [reached]


@over_the_encoders
@over_the_union
def test_one_tasks_features_are_its_own_entry(name: str, encoder: tuple[Any, ...]) -> None:
    """They do not depend on which other tasks are asked for."""
    model = build(name, encoder)
    inputs = torch.randn(4, *encoder[1])
    everything = model(inputs, output="features")
    predictions = model(inputs)
    for task in NAMES:
        alone = model.features(inputs, (task,))
        assert set(alone) == {task}
        torch.testing.assert_close(alone[task], everything[task])
        torch.testing.assert_close(model.heads[task](alone[task]), predictions[task])


@over_the_encoders
@over_the_union
def test_one_task_alone_is_predicted_and_shares_nothing(
    name: str, encoder: tuple[Any, ...]
) -> None:
    model = build(name, encoder, TASKS[:1])
    inputs = torch.randn(4, *encoder[1])
    predictions = model(inputs)
    assert (
        set(predictions) == {"a"}
        and predictions["a"].shape == (4, 4)
        and predictions["a"].isfinite().all()
    )
    torch.testing.assert_close(model({"a": inputs})["a"], predictions["a"])
    assert not model.shared
    assert all(value.isfinite() for value in model(inputs, output="auxiliary").values())


@over_the_encoders
@over_the_union
def test_parameters_are_all_reached_from_outside(name: str, encoder: tuple[Any, ...]) -> None:
    """The inner loop works on a copy: nothing of the module's own may remain in what it computes."""
    model = build(name, encoder)
    params, inputs = moved(model), torch.randn(2, *encoder[1])
    other = deepcopy(model)
    with torch.no_grad():
        for value in other.parameters():
            value.copy_(torch.randn_like(value))
    for output in ("predictions", "features", "auxiliary"):
        one, two = (
            functional_call(m, params, (inputs,), {"output": output}) for m in (model, other)
        )
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(model.penalty(params), other.penalty(params))


@over_the_union
def test_a_network_of_zeros_predicts_zeros(name: str) -> None:
    model = build(name)
    zeros = {key: torch.zeros_like(value) for key, value in model.named_parameters()}
    predictions = functional_call(model, zeros, (torch.randn(2, *SHAPE),))
    assert all(bool((value == 0).all()) for value in predictions.values())


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        # An architecture sees whether stages are vectors or maps, and lenet has both.
        *((name, encoder) for name in SHARING for encoder in ("mlp", "lenet")),
        *((name, encoder) for name in ("hard", "mtan") for encoder in ("conv", "conv4")),
    ],
)
def test_vmap_equals_a_loop_in_second_order(name: str, encoder: str) -> None:
    model = build(name, ENCODERS[encoder])
    assert_vmap_is_a_loop(model, torch.randn(2, 3, *ENCODERS[encoder][1]), moved(model))


@over_the_union
def test_vmap_equals_a_loop_with_own_inputs(name: str) -> None:
    model = build(name)
    params = moved(model)
    inputs = {task: torch.randn(2, 3 + i, *SHAPE) for i, task in enumerate(NAMES)}
    together = vmap(lambda own: adapted_outputs(model, params, own))(inputs)
    for index in range(2):
        alone = adapted_outputs(model, params, {task: own[index] for task, own in inputs.items()})
        for kind, values in alone.items():
            for key, value in values.items():
                torch.testing.assert_close(together[kind][key][index], value)


@pytest.mark.slow
@over_the_union
def test_resnet18_serves_every_architecture(name: str) -> None:
    """Abstractly: shapes and what is shared, without computing."""
    with torch.device("meta"):
        model = build(name, (copies_of_resnet18(), SHAPE), TASKS[:2])
        predictions = model(torch.empty(2, *SHAPE))
    assert {task: value.shape for task, value in predictions.items()} == {
        task: (2, num_outputs) for task, num_outputs in model.out_features.items()
    }
    reached = [touched(predictions[task], model) for task in NAMES[:2]]
    assert {
        k for k, _ in model.named_parameters() if sum(k in of_task for of_task in reached) > 1
    } == model.shared


@over_the_encoders
@over_the_union
def test_the_inner_loop_moves_every_predicting_parameter(
    name: str, encoder: tuple[Any, ...]
) -> None:
    model = build(name, encoder)
    inputs = torch.randn(8, *encoder[1])
    predictions = model(inputs)
    for task in NAMES:
        gradients = grad(
            lambda at, t=task: functional_call(model, at, (inputs,))[t].square().sum()
        )(moved(model))
        assert {key for key, value in gradients.items() if value.any()} == touched(
            predictions[task], model
        )
        assert all(value.isfinite().all() for value in gradients.values())


@over_the_union
def test_one_name_changes_the_architecture(name: str) -> None:
    """A field that members have in common keeps its value, so it has to mean the same in both."""
    before = experiment(sharing__name=name, data__tasks=["left", "right"])
    for other in SHARING:
        assert before.override({"sharing.name": other}).sharing.name == other


@over_the_union
def test_the_penalty_is_a_nonnegative_scalar(name: str) -> None:
    model = build(name)
    for scale in (0.0, 0.1, 1.0):
        penalty = model.penalty(moved(model, scale))
        assert penalty.ndim == 0 and penalty >= 0


@over_the_union
def test_float32_stays_float32(name: str) -> None:
    model = build(name).float()
    inputs = torch.randn(2, *SHAPE, dtype=torch.float32)
    for kind in ("predictions", "features", "auxiliary"):
        assert all(value.dtype == torch.float32 for value in model(inputs, output=kind).values())


@pytest.mark.parametrize("name", ["cross_stitch", "soft"])
def test_one_task_alone_equals_hard_sharing(name: str) -> None:
    alone, hard = (build(kind, tasks=TASKS[:1]) for kind in (name, "hard"))
    hard.load_state_dict({k: v for k, v in alone.state_dict().items() if k != "stitches"})
    inputs = torch.randn(4, *SHAPE)
    torch.testing.assert_close(alone(inputs)["a"], hard(inputs)["a"])


@over_the_encoders
def test_cross_stitch_with_the_identity_is_independent_networks(encoder: tuple[Any, ...]) -> None:
    towers = [encoder[0].build(encoder[1]) for _ in TASKS]
    stitched = CrossStitchSpec(own=1.0).build(TASKS, towers)
    independent = SoftSpec(strength=0.0).build(TASKS, towers)
    independent.heads = stitched.heads
    inputs = torch.randn(4, *encoder[1])
    for task in NAMES:
        torch.testing.assert_close(stitched(inputs)[task], independent(inputs)[task])


def test_cross_stitch_rows_start_at_sum_one() -> None:
    stitches = build("cross_stitch").stitches
    torch.testing.assert_close(stitches.sum(-1), torch.ones(2, 3))
    assert torch.allclose(stitches.diagonal(dim1=1, dim2=2), torch.tensor(0.9))


def test_soft_penalty_pulls_to_the_mean() -> None:
    """Its gradient is twice the distance to the mean, times the strength."""
    model = SoftSpec(strength=0.3).build(TASKS, [MLPSpec(hidden=(4,)).build(SHAPE) for _ in TASKS])
    params = dict(model.named_parameters())
    name = "encoders.1.stages.0.1.weight"
    (gradient,) = torch.autograd.grad(model.penalty(params), [params[name]])
    mean = torch.stack([params[f"encoders.{i}.stages.0.1.weight"] for i in range(3)]).mean(0)
    torch.testing.assert_close(gradient, 2 * 0.3 * (params[name] - mean))
