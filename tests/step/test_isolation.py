"""What one episode learns stays in that episode: over all learners, architectures and weightings, to the bit."""

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_map

from raymtl.config import Experiment
from raymtl.data.base import Arrays
from raymtl.data.episodes import on_device
from raymtl.learners import BATCH_EMBEDDINGS, LearnerSpec, MetaLearner
from raymtl.learners.gradient import UnrolledLearner
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, over_episodes
from raymtl.step.meta_gradient import meta_gradient, update_after_step
from raymtl.types import Batch, Episode, Params, UserError, select
from tests.conftest import (
    ADAPTING,
    LEARNERS,
    SHARING,
    WEIGHTING,
    axes,
    perturbed,
    possible,
    two_steps,
)
from tests.drawing import one_episode
from tests.learners.test_learners import VARIANTS
from tests.narrowing import checked, present


def allowed(sharing: str, learner: str, values: Mapping[str, Any]) -> bool:
    """Whether the configuration takes the learner with these values; what is refused is told by tests/config/test_config.py."""
    try:
        axes(sharing, "static", learner).override(values)
    except UserError:
        return False
    return True


PAIRS = [
    *(
        (sharing, learner, {})
        for sharing in SHARING
        for learner in LEARNERS
        if (sharing == "hard" or learner == "maml") and possible(sharing, "static", learner)
    ),
    *(("hard", learner, values) for learner, values in VARIANTS if values),
    # Batch norms hold the statistics of a support set beside the parameters.
    *(
        ("hard", learner, {"encoder.norm": norm})
        for norm in ("batch", "per_step")
        for learner in LEARNERS
        if allowed("hard", learner, {"encoder.norm": norm})
    ),
]
MEMBERS = {
    member.model_fields["name"].default: member for member in get_args(get_args(LearnerSpec)[0])
}
# Those that take inner steps, without reading the labels of all tasks before the first; and those whose path is public.
DESCENDING = [
    n for n, member in MEMBERS.items() if member().num_steps and member.embed is MetaLearner.embed
]
UNROLLED = [n for n, member in MEMBERS.items() if member.adapt is UnrolledLearner.adapt]
OWN_WEIGHTS = (
    "auto_lambda",
    "dwa",
    "famo",
    "gls",
    "gradnorm",
    "imtl_l",
    "random",
    "static",
    "stch",
    "uncertainty",
)
FAST = {"learner.inner_lr": 0.1}  # so that an inner loop moves far


def drawn(chosen: Experiment, arrays: Arrays, *indices: int, step: int = 0) -> list[Episode]:
    """Episodes apart from each other."""
    source = chosen.data
    return [
        on_device(
            one_episode(source, arrays, "train", index, seed=chosen.seed, step=step)[0], "cpu"
        )
        for index in indices
    ]


def stacked(*episodes: Episode) -> Episode:
    stack: Episode = tree_map(lambda *leaves: torch.stack(leaves), *episodes)
    return stack


def copied(params: Params) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in params.items()}


def assert_same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12, msg=name)


def with_batch(algorithm: Algorithm, params: Params, *episodes: Episode) -> Params:
    """What the outer step gives the learner to adapt: the parameters, and the embeddings of the batch if it asks."""
    if not algorithm.learner.uses_batch_context:
        return params
    embeddings = [
        present(algorithm.learner.embed(algorithm.model, params, episode.support))
        for episode in episodes
    ]
    return {**params, BATCH_EMBEDDINGS: torch.stack(embeddings).detach()}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("sharing", "learner", "values"), [c for c in PAIRS if c[1] in ADAPTING])
def test_what_was_adapted_to_before_leaves_no_trace(
    sharing: str, learner: str, values: dict[str, Any], arrays: Arrays
) -> None:
    """B after A is B alone, to the bit; neither the given parameters nor the model and weighting are moved.

    A trace could lie in an architecture or in a learner: each beside plain and intricate partners.
    """
    chosen = two_steps(sharing, "static", learner).override(values)
    first, second = drawn(chosen, arrays, 0, 1)
    fresh = chosen.build()
    alone = fresh.adapt(perturbed(fresh), second.support)

    algorithm = chosen.build()
    params = perturbed(algorithm)
    given, modules = copied(params), (algorithm.model, algorithm.weighting)
    inside = [copied(module.state_dict()) for module in modules]
    other = algorithm.adapt(params, first.support)
    after = algorithm.adapt(params, second.support)
    assert_same_bits(after, alone)
    assert_same_bits(
        algorithm.predict(after, second.query.inputs), fresh.predict(alone, second.query.inputs)
    )
    assert any(not torch.equal(value, after[name]) for name, value in other.items())
    assert_same_bits(params, given)
    for module, before in zip(modules, inside, strict=True):
        assert_same_bits(module.state_dict(), before)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("sharing", "learner", "values"), PAIRS)
def test_episodes_adapt_as_they_do_alone(
    sharing: str, learner: str, values: dict[str, Any], arrays: Arrays
) -> None:
    """In one vmapped batch B's parameters and predictions are those of B alone, whoever stands beside it and where."""
    chosen = two_steps(sharing, "static", learner).override(values)
    a, b, c = drawn(chosen, arrays, 0, 1, 2)
    algorithm = chosen.build()
    params = with_batch(algorithm, perturbed(algorithm), a, b, c)

    def adapted(episode: Episode) -> tuple[Params, dict[str, Tensor]]:
        own = algorithm.adapt(params, episode.support)
        return own, algorithm.predict(own, episode.query.inputs)

    alone = adapted(b)
    for company, place in (((a, b), 1), ((b, c), 0)):
        batch = over_episodes(adapted, stacked(*company), ExecutionConfig("vmap"))
        found = tree_map(lambda leaf, at=place: leaf[at], batch)
        for own, expected in zip(found, alone, strict=True):
            assert_close(own, expected)


def gradients(chosen: Experiment, *episodes: Episode) -> dict[str, Tensor]:
    algorithm = chosen.build()
    return meta_gradient(algorithm, perturbed(algorithm), stacked(*episodes)).grads


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("sharing", "learner", "values"), PAIRS)
def test_the_meta_gradient_averages_its_episodes(
    sharing: str, learner: str, values: dict[str, Any], arrays: Arrays
) -> None:
    """So their order has no say; what adapts in view of the whole batch is asked for that alone."""
    chosen = two_steps(sharing, "static", learner).override(values)
    a, b = drawn(chosen, arrays, 0, 1)
    together = gradients(chosen, a, b)
    assert any(gradient.abs().max() > 1e-6 for gradient in together.values())
    if chosen.learner.uses_batch_context:
        expected = gradients(chosen, b, a)
    else:
        first, second = (gradients(chosen, episode) for episode in (a, b))
        expected = {name: (first[name] + second[name]) / 2 for name in together}
    assert_close(expected, together)


def moved_weighting(chosen: Experiment, arrays: Arrays) -> tuple[Algorithm, dict[str, Tensor]]:
    """A problem whose weighting has seen three steps, so that its weights are no longer those of the start."""
    algorithm = chosen.build()
    params = perturbed(algorithm)
    for step in range(3):
        episodes = stacked(*drawn(chosen, arrays, 0, 1, step=step))
        meta = meta_gradient(algorithm, params, episodes, step=step)
        with torch.no_grad():
            for name, value in params.items():
                value -= 0.05 * meta.grads[name]
        if chosen.weighting.needs_post_step_losses:
            update_after_step(algorithm, params, episodes, meta)
    return algorithm, params


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weighting", WEIGHTING)
def test_the_inner_loop_descends_the_weighted_loss(weighting: str, arrays: Arrays) -> None:
    """One step is theta - lr sum_t w_t grad L_t, by plain autograd; methods that weigh gradients have w = 1."""
    chosen = axes("hard", weighting, "maml").override({**FAST, "learner.inner_steps": 1})
    settings: dict[str, dict[str, Any]] = {
        "static": {"weighting.weights.left": 5.0},
        "dwa": {"weighting.period": 1},
    }
    chosen = chosen.override(settings.get(weighting, {}))
    algorithm, params = moved_weighting(chosen, arrays)
    (episode,) = drawn(chosen, arrays, 7)
    state = copied(algorithm.weighting.state_dict())
    weights = functional_call(algorithm.weighting, select(params, "weighting"), ()).detach()
    computed = algorithm.adapt(params, episode.support)
    assert_same_bits(algorithm.weighting.state_dict(), state)

    own = {name: value for name, value in params.items() if name.startswith("model.")}
    predictions = functional_call(
        algorithm.model, select(params, "model"), (episode.support.inputs,)
    )
    losses = [
        task.loss(predictions[task.name], episode.support.targets[task.name]).mean()
        for task in algorithm.tasks
    ]
    total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
    grads = torch.autograd.grad(total, list(own.values()))
    expected = {
        name: value - 0.1 * grad for (name, value), grad in zip(own.items(), grads, strict=True)
    }
    assert_close({name: computed[name] for name in own}, expected)
    assert (weights != weights[0]).any() or weighting not in OWN_WEIGHTS


def weighted(chosen: Experiment, weights: list[float]) -> Algorithm:
    """With these weights of the losses, of which some are zero, as a configuration cannot have them."""
    algorithm = chosen.build()
    algorithm.weighting.restore({"weights": torch.tensor(weights)})
    return algorithm


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("sharing", "learner", "values"), [c for c in PAIRS if c[1] in DESCENDING])
def test_weightless_tasks_do_not_move_the_others(
    sharing: str, learner: str, values: dict[str, Any], arrays: Arrays
) -> None:
    """Its support labels may be anything: all but its own head, which some learners fit apart, ends up the same."""
    chosen = two_steps(sharing, "static", learner).override(values)
    *speaking, silent = chosen.data.task_names
    algorithm = weighted(chosen, [1.0] * len(speaking) + [0.0])
    params = perturbed(algorithm)
    (episode,) = drawn(chosen, arrays, 0)
    changed = {**episode.support.targets, silent: episode.support.targets[silent].flip(0)}
    assert not torch.equal(changed[silent], episode.support.targets[silent])
    found = []
    for support in (episode.support, episode.support._replace(targets=changed)):
        adapted = algorithm.adapt(params, support)
        predictions = algorithm.predict(adapted, episode.query.inputs)
        found.append(
            {name: value for name, value in adapted.items() if silent not in name.split(".")}
            | {f"prediction {name}": predictions[name] for name in speaking}
        )
    assert_close(*found)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("learner", ["anil", "maml", "maml_pp", "meta_sgd", "reptile"])
def test_weightless_tasks_heads_stand_still(learner: str, arrays: Arrays) -> None:
    chosen = axes("hard", "static", learner).override(FAST)
    algorithm = weighted(chosen, [1.0, 0.0, 0.0])
    params = perturbed(algorithm)
    (episode,) = drawn(chosen, arrays, 0)
    adapted = algorithm.adapt(params, episode.support)
    alone = {**episode.support.targets, "right": torch.zeros_like(episode.support.targets["right"])}
    for name in ("weight", "bias"):
        assert not torch.equal(
            adapted[f"model.heads.left.{name}"], params[f"model.heads.left.{name}"]
        )
        for task in ("right", "sum"):
            assert torch.equal(
                adapted[f"model.heads.{task}.{name}"], params[f"model.heads.{task}.{name}"]
            )
    assert_same_bits(algorithm.adapt(params, episode.support._replace(targets=alone)), adapted)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("learner", UNROLLED)
def test_interleaved_inner_loops_are_independent(
    learner: str, optimizer: str, arrays: Arrays
) -> None:
    chosen = axes("hard", "static", learner)
    algorithm = chosen.build()
    learner_spec = checked(
        algorithm.learner.model_copy(update={"inner_optimizer": optimizer}), UnrolledLearner
    )
    params = perturbed(algorithm)
    supports = [episode.support for episode in drawn(chosen, arrays, 0, 1)]

    def path(support: Batch) -> Iterator[Params]:
        return learner_spec.path(
            algorithm.model, params, support, algorithm.objective, first_order=False
        )

    alone = [list(islice(path(support), 4)) for support in supports]
    in_turns = list(islice(zip(*map(path, supports), strict=True), 4))
    for index in range(2):
        for expected, found in zip(alone[index], in_turns, strict=True):
            assert_same_bits(found[index], expected)
    assert any(not torch.equal(value, alone[0][1][name]) for name, value in alone[0][3].items())


@pytest.mark.usefixtures("float64")
# r2d2 differentiates forward, whose levels torch counts for all threads together.
@pytest.mark.parametrize("learner", [name for name in LEARNERS if name != "r2d2"])
def test_threads_with_own_algorithms_are_independent(learner: str, arrays: Arrays) -> None:
    """One problem for all threads would: a functional call puts its parameters into the module for as long as it runs."""
    chosen = axes("hard", "static", learner)
    algorithm = chosen.build()
    params = perturbed(algorithm)
    episodes = drawn(chosen, arrays, *range(4))
    expected = [algorithm.adapt(params, episode.support) for episode in episodes]
    algorithms = [chosen.build() for _ in episodes]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(len(episodes)) as threads:
            found = list(
                threads.map(lambda own, e: own.adapt(params, e.support), algorithms, episodes)
            )
    finally:
        sys.setswitchinterval(interval)
    for adapted, alone in zip(found, expected, strict=True):
        assert_same_bits(adapted, alone)
