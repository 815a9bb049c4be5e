"""The ways to run the episodes of a step: the same numbers by each, and the memory of one graph."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.data import Arrays
from raymtl.step import query_gradient as module_of_the_step
from raymtl.step.execution import ExecutionConfig, TaskAxis, laid_out, suited_to
from raymtl.step.graph_size import graph_megabytes
from raymtl.step.meta_gradient import meta_gradient
from raymtl.step.outer_loss import query_losses
from raymtl.step.task_gradients import Losses
from raymtl.types import UserError
from raymtl.weighting.base import LossWeighting
from tests.conftest import (
    LEARNERS,
    SHARING,
    WEIGHTING,
    axes,
    episodes_of,
    experiment,
    perturbed,
    star,
    two_steps,
    with_missing_labels,
)

PICTURES: dict[str, dict[str, Any]] = {
    "conv4": {"encoder.name": "conv4", "encoder.width": 4},
    "conv4, batch norm": {"encoder.name": "conv4", "encoder.width": 4, "encoder.norm": "batch"},
}


def on_pictures(sharing: str, learner: str, encoder: str = "conv4") -> Experiment:
    """Convolutions on two tasks, or on all of them where the axes need that, and two inner steps."""
    changes: dict[str, Any] = dict(PICTURES[encoder])
    chosen = two_steps(sharing, "static", learner)
    if "inner_lr" in type(chosen.learner).model_fields:
        changes["learner.inner_lr"] = 0.01
    return chosen.override(changes)


def assert_the_loop_equals_vmap(chosen: Experiment, arrays: Arrays) -> None:
    episodes = episodes_of(chosen, arrays, count=2)
    results = []
    for execution in (ExecutionConfig("vmap"), ExecutionConfig("loop")):
        algorithm = chosen.build()
        params = perturbed(algorithm)
        results.append(meta_gradient(algorithm, params, episodes, execution=execution))
    together, one_by_one = results
    torch.testing.assert_close(one_by_one.losses, together.losses, rtol=1e-9, atol=1e-11)
    assert any(gradient.abs().max() > 1e-6 for gradient in together.grads.values())
    for name, gradient in one_by_one.grads.items():
        torch.testing.assert_close(gradient, together.grads[name], rtol=1e-7, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sharing", SHARING)
def test_channels_last_suit_every_architecture(sharing: str, arrays: Arrays) -> None:
    """The loop lays pictures and weights out with the channels last, vmap does not."""
    assert_the_loop_equals_vmap(on_pictures(sharing, "maml"), arrays)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("encoder", PICTURES)
@pytest.mark.parametrize("learner", LEARNERS)
def test_channels_last_suit_every_learner(learner: str, encoder: str, arrays: Arrays) -> None:
    try:
        chosen = on_pictures("hard", learner, encoder)
    except UserError:
        pytest.skip("refused as it is")
    assert_the_loop_equals_vmap(chosen, arrays)


def test_the_loop_lays_weights_out_anew() -> None:
    params = on_pictures("hard", "maml").build().init_params()
    name = "model.encoders.0.stages.1.0.weight"
    for execution, moved in ((ExecutionConfig("loop"), True), (ExecutionConfig("vmap"), False)):
        weight = laid_out(params, execution)[name]
        assert weight.is_contiguous(memory_format=torch.channels_last) == moved
        assert torch.equal(weight, params[name])


def test_few_pictures_keep_the_layout_of_many_weights(arrays: Arrays) -> None:
    chosen = on_pictures("hard", "maml")
    params, episodes = chosen.build().init_params(), episodes_of(chosen, arrays, count=2)
    execution = ExecutionConfig("loop")
    assert suited_to(execution, params, episodes).channels_last
    pictures = episodes.query.inputs
    assert isinstance(pictures, Tensor)
    params["model.more"] = torch.zeros(40, pictures[0].numel(), 1, 1)
    assert not suited_to(execution, params, episodes).channels_last


def most_graphs(
    weighting: str,
    learner: str,
    arrays: Arrays,
    monkeypatch: pytest.MonkeyPatch,
    micro_batches: int = 1,
    graph_mb: float | None = None,
    tasks: tuple[str, ...] = ("left", "right"),
) -> tuple[int, int]:
    """How many graphs a step of five episodes makes in a loop, and how many it holds at once."""
    chosen = axes("hard", weighting, learner).override({"data.tasks": list(tasks)})
    algorithm = chosen.build()
    episodes = episodes_of(chosen, arrays, count=5)
    losses: list[weakref.ref[Tensor]] = []
    held: list[int] = []

    def watched(*given: Any) -> Losses:
        made = query_losses(*given)
        if made.blocks[0].requires_grad:
            losses.append(weakref.ref(made.blocks[0]))
            held.append(sum(each() is not None for each in losses))
        return made

    monkeypatch.setattr(module_of_the_step, "query_losses", watched)
    execution = ExecutionConfig("loop", micro_batches=micro_batches, graph_mb=graph_mb)
    meta_gradient(algorithm, algorithm.init_params(), episodes, execution=execution)
    return len(held), max(held)


@pytest.mark.parametrize("learner", ["maml", "protonet"])
@pytest.mark.parametrize("weighting", ["static", "uncertainty", "pcgrad"])
def test_a_loop_holds_the_graph_of_one_episode(
    weighting: str, learner: str, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no loss of the step decides what its backward passes weigh."""
    assert most_graphs(weighting, learner, arrays, monkeypatch) == (5, 1)


def test_weights_of_losses_wait_for_every_episode(
    arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one graph, or with micro-batches in one after the other."""
    assert most_graphs("gls", "maml", arrays, monkeypatch) == (1, 1)
    assert most_graphs("gls", "maml", arrays, monkeypatch, micro_batches=3) == (3, 1)


UNKNOWING = ("dwa", "famo", "gls", "stch")


@pytest.mark.parametrize("weighting", UNKNOWING)
def test_a_single_loss_waits_for_no_other(
    weighting: str, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradient is weighed when it is complete."""
    assert most_graphs(weighting, "maml", arrays, monkeypatch, tasks=("left",)) == (5, 1)


@pytest.mark.parametrize("weighting", UNKNOWING)
def test_large_graphs_do_not_wait(
    weighting: str, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert most_graphs(weighting, "maml", arrays, monkeypatch, graph_mb=0.001) == (5, 1)
    assert most_graphs(weighting, "maml", arrays, monkeypatch, graph_mb=1000) == (1, 1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("axis", ["loop", "vmap"])
@pytest.mark.parametrize(
    ("sharing", "weighting", "learner"),
    [each for each in star() if each[1] not in ("pcgrad", "graddrop")],
)
def test_losses_computed_twice_give_the_same_step(
    sharing: str, weighting: str, learner: str, axis: TaskAxis, arrays: Arrays
) -> None:
    chosen = axes(sharing, weighting, learner)
    episodes = with_missing_labels(episodes_of(chosen, arrays, count=3))
    results = []
    for graph_mb in (None, 0.001):
        algorithm = chosen.build()
        execution = ExecutionConfig(axis, 2 if axis == "vmap" else None, graph_mb=graph_mb)
        results.append(
            meta_gradient(algorithm, perturbed(algorithm), episodes, execution=execution)
        )
    one, other = results
    torch.testing.assert_close(other.losses, one.losses, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(other.weights, one.weights, rtol=1e-8, atol=1e-10)
    for name, gradient in other.grads.items():
        torch.testing.assert_close(gradient, one.grads[name], rtol=1e-8, atol=1e-11)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weighting", [each for each in WEIGHTING if each in UNKNOWING])
def test_a_single_loss_weighs_its_complete_gradient(weighting: str, arrays: Arrays) -> None:
    """That of `equal` times its weight."""
    results = []
    for name in (weighting, "equal"):
        chosen = axes("hard", name, "maml").override({"data.tasks": ["left"]})
        algorithm = chosen.build()
        episodes = episodes_of(chosen, arrays, count=3)
        params = {n: v for n, v in perturbed(algorithm).items() if n.startswith("model.")}
        results.append(meta_gradient(algorithm, params, episodes))
    one, equal = results
    for name, gradient in one.grads.items():
        torch.testing.assert_close(gradient, one.weights[0] * equal.grads[name])


def test_the_estimate_grows_with_episodes_and_steps(arrays: Arrays) -> None:
    sizes = []
    for steps, count in ((0, 1), (0, 4), (1, 1), (3, 1)):
        chosen = experiment(learner__inner_steps=steps)
        algorithm, stack = chosen.build(), episodes_of(chosen, arrays, count=count)
        sizes.append(graph_megabytes(algorithm, algorithm.init_params(), [stack]))
    none, four, one, three = sizes
    assert four == pytest.approx(4 * none)
    assert three - none == pytest.approx(3 * (one - none)) and one > none


KNOWING = [
    name
    for name in WEIGHTING
    if isinstance(weighting := experiment(weighting__name=name).build().weighting, LossWeighting)
    and weighting.knows_weights
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", KNOWING)
def test_known_weights_are_the_weights_of_every_loss(name: str) -> None:
    """Of all tasks and of some of them."""
    weighting = experiment(weighting__name=name).build().weighting
    assert isinstance(weighting, LossWeighting)
    for value in weighting.parameters():
        value.data = torch.randn_like(value)
    for tasks in (torch.arange(3), torch.tensor([0, 2])):
        losses = (torch.rand(len(tasks)) + 0.1).requires_grad_()
        known = weighting.loss_weights()[tasks].detach()
        weights = weighting.weigh(losses, tasks)
        if not weights.ndim:
            (weights,) = torch.autograd.grad(weights, losses)
        torch.testing.assert_close(weights, known)
