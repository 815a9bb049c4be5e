"""Laws of learners as assertions, and what their tests share: one episode, labels hidden by hand."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raymtl.config import Experiment
from raymtl.data import Split
from raymtl.data.base import Arrays
from raymtl.data.episodes import build_episodes, on_device
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, over_episodes
from raymtl.step.meta_gradient import meta_gradient
from raymtl.storage import formats
from raymtl.types import Batch, Episode
from tests.conftest import episodes_of, perturbed, with_missing_labels
from tests.narrowing import shared_inputs


def first(episodes: Episode) -> Episode:
    """The first episode of a stack."""
    episode: Episode = tree_map(lambda leaf: leaf[0], episodes)
    return episode


def kept(batch: Batch, rows: Tensor) -> Batch:
    """The batch of these examples alone, all with their labels."""
    return Batch(
        shared_inputs(batch)[rows],
        {name: target[rows] for name, target in batch.targets.items()},
        {},
    )


def assert_vmap_equals_the_loop(chosen: Experiment, arrays: Arrays) -> None:
    """With some labels missing in support and query, of two episodes."""
    episodes = with_missing_labels(episodes_of(chosen, arrays, count=2))
    results = []
    for axis in ("vmap", "loop"):
        algorithm = chosen.build()
        results.append(
            meta_gradient(
                algorithm, perturbed(algorithm), episodes, execution=ExecutionConfig(axis)
            )
        )
    torch.testing.assert_close(results[0].losses, results[1].losses, rtol=1e-10, atol=1e-12)
    assert any(gradient.abs().max() > 1e-6 for gradient in results[0].grads.values())
    for name, gradient in results[0].grads.items():
        torch.testing.assert_close(gradient, results[1].grads[name], rtol=1e-8, atol=1e-11)


def assert_unlabelled_examples_have_no_say(chosen: Experiment, arrays: Arrays) -> None:
    """Hidden labels hold nonsense, and leave what leaving their examples out leaves."""
    algorithm = chosen.build()
    params = perturbed(algorithm)
    support, query = first(episodes_of(chosen, arrays))
    rows = torch.arange(len(support.inputs)) % 3 > 0
    masks = dict.fromkeys(support.targets, rows)
    targets = {name: torch.where(rows, target, 0) for name, target in support.targets.items()}
    hidden, by_hand = support._replace(targets=targets, masks=masks), kept(support, rows)
    predictions = [
        algorithm.predict(algorithm.adapt(params, s), query.inputs) for s in (hidden, by_hand)
    ]
    for name in predictions[0]:
        torch.testing.assert_close(
            predictions[0][name], predictions[1][name], rtol=1e-10, atol=1e-12
        )


def assert_the_order_of_the_support_set_has_no_say(chosen: Experiment, arrays: Arrays) -> None:
    """With some labels missing."""
    algorithm = chosen.build()
    params = perturbed(algorithm)
    support, query = first(with_missing_labels(episodes_of(chosen, arrays)))
    order = torch.randperm(len(support.inputs))
    shuffled = tree_map(lambda leaf: leaf[order], support)
    predictions = [
        algorithm.predict(algorithm.adapt(params, s), query.inputs) for s in (support, shuffled)
    ]
    for name in predictions[0]:
        torch.testing.assert_close(
            predictions[0][name], predictions[1][name], rtol=1e-10, atol=1e-12
        )


def mse_on_sinusoids(learner: str, steps: int) -> float:
    """After so many outer steps, in the unit of y^2; who does not adapt cannot do better than 3.006."""
    chosen = Experiment().override(
        {
            "data.name": "sinusoid",
            "encoder.name": "mlp",
            "encoder.hidden": [40, 40],
            "learner.name": learner,
        }
    )
    algorithm = chosen.build()
    params = algorithm.init_params()
    optimizer = torch.optim.Adam(params.values(), lr=2e-3)

    def episodes(split: Split, step: int, count: int) -> Episode:
        drawn = build_episodes(
            chosen.data, {}, seed=0, split=split, step=step, indices=range(count)
        )[0]
        return on_device(drawn[0], "cpu")

    for step in range(steps):
        meta = meta_gradient(algorithm, params, episodes("train", step, 25), step=step)
        for name, value in params.items():
            value.grad = meta.grads[name]
        optimizer.step()
    held_out = episodes("test", 0, 200)
    with torch.no_grad():
        predicted = over_episodes(
            lambda e: algorithm.predict(algorithm.adapt(params, e.support), e.query.inputs)["y"],
            held_out,
            ExecutionConfig(),
        )
    y = algorithm.tasks[0].decode(predicted.flatten(0, 1))
    return float((y - held_out.query.targets["y"].flatten()).square().mean())


def assert_it_survives_saving(chosen: Experiment, arrays: Arrays, folder: Path) -> None:
    """Adapt, save, load into a new problem, predict: the same to the bit."""
    algorithm = chosen.build()
    support, query = first(episodes_of(chosen, arrays))
    adapted = algorithm.adapt(perturbed(algorithm), support)
    formats.save_params(folder / "model.safetensors", adapted)
    # Copies: a tensor in the file begins at any byte, and a product may round by where its factors lie in memory.
    loaded = {
        name: value.clone()
        for name, value in formats.load_params(folder / "model.safetensors").items()
    }
    again = chosen.build().predict(loaded, query.inputs)
    for name, prediction in algorithm.predict(adapted, query.inputs).items():
        assert torch.equal(prediction, again[name])


def assert_gradient_of_finite_differences(
    chosen: Experiment, arrays: Arrays, prefix: str = "", scale: float = 0.1
) -> None:
    """The meta-gradient along a random direction of the parameters whose names begin so."""
    algorithm = chosen.build()
    params = perturbed(algorithm, scale)
    names = [name for name in params if name.startswith(prefix)]
    assert directional_error(algorithm, params, episodes_of(chosen, arrays), names) < 1e-6


def directional_error(
    algorithm: Algorithm, params: dict[str, Tensor], episodes: Episode, names: list[str]
) -> float:
    """How far the gradient along a random direction of these parameters is off central differences, relatively."""
    generator = torch.Generator().manual_seed(7)
    direction = {
        n: torch.randn(params[n].shape, generator=generator, dtype=params[n].dtype) for n in names
    }
    grads = meta_gradient(algorithm, params, episodes).grads
    computed = sum((grads[n] * direction[n]).sum() for n in names)
    loss: Callable[[float], Tensor] = lambda shift: meta_gradient(  # noqa: E731
        algorithm,
        {
            n: (v.detach() + shift * direction[n]).requires_grad_() if n in direction else v
            for n, v in params.items()
        },
        episodes,
    ).losses.sum()
    numeric = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert numeric.abs() > 1e-8
    return float((computed - numeric).abs() / numeric.abs())
