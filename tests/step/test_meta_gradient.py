"""One outer step: exact on any number of workers, with ragged shards and missing labels, for every combination."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch.utils._pytree import tree_map

from raymtl.config import Experiment
from raymtl.data.base import Arrays
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import MetaGradient, meta_gradient, update_after_step
from raymtl.step.workers import Workers
from raymtl.training.fastest import Way, way_of_rows
from raymtl.types import Batch, DivergedError, Episode
from tests.conftest import (
    LEARNERS,
    WEIGHTING,
    axes,
    combinations,
    episodes_of,
    experiment,
    perturbed,
    possible,
    star,
    two_steps,
    with_missing_labels,
)
from tests.processes import run_on

COMBINATIONS = combinations()
STAR = star()
SPLITS = {  # ragged on purpose
    2: [(0, 7), (7, 9)],
    3: [(0, 1), (1, 4), (4, 9)],
}


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("sharing", "weighting", "learner"), COMBINATIONS)
def test_every_combinations_vmap_equals_the_loop(
    sharing: str, weighting: str, learner: str, arrays: Arrays
) -> None:
    chosen = two_steps(sharing, weighting, learner)
    executions = [ExecutionConfig("vmap"), ExecutionConfig("loop")]
    if way_of_rows(chosen.build(), None) is not None:
        executions += [ExecutionConfig("rows"), ExecutionConfig("rows", chunk=1)]
    _assert_alike(chosen, episodes_of(chosen, arrays, count=2), *executions)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("learner", LEARNERS)
def test_chunked_vmap_equals_vmap_over_all(learner: str, arrays: Arrays) -> None:
    """How many at a time is decided around the learner, which alone sees single episodes."""
    chosen = two_steps(
        "hard", "pcgrad" if possible("hard", "pcgrad", learner) else "static", learner
    )
    _assert_alike(
        chosen,
        episodes_of(chosen, arrays),
        ExecutionConfig("vmap"),
        ExecutionConfig("vmap", chunk=2),
    )


def _assert_alike(chosen: Experiment, episodes: Episode, *executions: ExecutionConfig) -> None:
    """The same losses and meta-gradients in both ways, and not all zero."""
    results = []
    for execution in executions:
        algorithm = chosen.build()
        results.append(
            meta_gradient(algorithm, perturbed(algorithm), episodes, execution=execution)
        )
    one, *others = results
    assert any(gradient.abs().max() > 0 for gradient in one.grads.values())
    for other in others:
        _assert_close(one, other)


def _assert_close(one: MetaGradient, other: MetaGradient) -> None:
    torch.testing.assert_close(other.losses, one.losses, rtol=1e-10, atol=1e-12)
    for name, gradient in other.grads.items():
        torch.testing.assert_close(gradient, one.grads[name], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(("sharing", "weighting", "learner"), STAR)
def test_every_member_runs_in_bfloat16(
    sharing: str, weighting: str, learner: str, arrays: Arrays
) -> None:
    """Each member once: precision is set around the whole step, so pairs add nothing."""
    chosen = two_steps(sharing, weighting, learner)
    algorithm = chosen.build()
    execution = ExecutionConfig(precision="bfloat16")
    result = meta_gradient(
        algorithm, algorithm.init_params(), episodes_of(chosen, arrays), execution=execution
    )
    exact = meta_gradient(chosen.build(), algorithm.init_params(), episodes_of(chosen, arrays))
    assert all(
        gradient.dtype == torch.float32 and gradient.isfinite().all()
        for gradient in result.grads.values()
    )
    torch.testing.assert_close(result.losses, exact.losses, rtol=0.05, atol=0.05)
    assert not torch.equal(result.losses, exact.losses)
    flat, true = (
        torch.cat([meta.grads[name].flatten() for name in exact.grads]) for meta in (result, exact)
    )
    assert torch.cosine_similarity(flat, true, dim=0) > 0.95


def _trained(
    chosen: Experiment, steps: list[Episode], workers: Workers, share: slice
) -> dict[str, torch.Tensor]:
    """Parameters, weights, losses and the weighting's state after a few steps of gradient descent on one's share."""
    algorithm = chosen.build()
    way = way_of_rows(algorithm, None) or Way("vmap")
    execution = ExecutionConfig(way.task_axis)
    params = perturbed(algorithm)
    found: dict[str, torch.Tensor] = {}
    for number, episodes in enumerate(steps):
        own = tree_map(lambda leaf: leaf[share], episodes)
        meta = meta_gradient(algorithm, params, own, workers, execution)
        with torch.no_grad():
            for name, value in params.items():
                value -= 0.01 * meta.grads[name] / (1 + meta.grads[name].norm())
        if chosen.weighting.needs_post_step_losses:
            update_after_step(algorithm, params, own, meta, workers, execution)
        found |= {f"losses {number}": meta.losses, f"weights {number}": meta.weights}
    state = {f"state {name}": value for name, value in algorithm.weighting.state().items()}
    return found | state | {name: value.detach() for name, value in params.items()}


def _cases(arrays: Any, every: bool) -> list[tuple[Experiment, list[Episode]]]:
    """Two steps of nine episodes: all labels, then some missing and one task without any; for each
    weighting a third in which one task alone has labels.

    Each member of each axis once, beside `hard`, `pcgrad` and `maml`; with `every` all other combinations.
    """
    cases = []
    others = [combination for combination in COMBINATIONS if combination not in STAR]
    for combination in others if every else STAR:
        chosen = two_steps(*combination)
        steps = [episodes_of(chosen, arrays, step=step, count=9) for step in range(2)]
        # A class without a single support label has no prototype.
        steps[1] = with_missing_labels(steps[1], support=chosen.learner.name != "protonet")
        query = steps[1].query
        masks = {**query.masks, "left": torch.zeros_like(query.masks["left"])}
        steps[1] = steps[1]._replace(query=query._replace(masks=masks))
        if combination[0] == "hard" and combination[2] == "maml":
            steps.append(_with_labels_of_one_task(steps[1]))
        cases.append((chosen, steps))
    return cases


def _with_labels_of_one_task(episodes: Episode) -> Episode:
    """The same episodes, in which only the task `right` has labels in the query sets."""
    query = episodes.query
    masks = {name: mask & (name == "right") for name, mask in query.masks.items()}
    return episodes._replace(query=query._replace(masks=masks))


def _sizes(every: bool) -> list[tuple[int, int]]:
    """Numbers of workers, and which cases they train: every so many."""
    if every:
        return [(2, 1)]
    return [(2, 4), (3, 1)]


def _as_worker(rank: int, folder: str, arrays: Any, every: bool) -> None:
    """A worker process: of three, and before that, for every fourth case, of two; with `every` of two alone.

    Trains on its ragged share of every case and saves what it ends up with.
    """
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    cases = _cases(arrays, every)
    for size, stride in _sizes(every):
        of_size = cases[::stride]
        if rank < size:
            dist.init_process_group(
                "gloo", init_method=f"file://{folder}/rendezvous-{size}", rank=rank, world_size=size
            )
            share = slice(*SPLITS[size][rank])
            found = [
                _trained(chosen, steps, Workers(rank, size), share) for chosen, steps in of_size
            ]
            torch.save(found, f"{folder}/{size}-{rank}.pt")
            dist.destroy_process_group()


@pytest.mark.usefixtures("float64")
@pytest.mark.slow
@pytest.mark.parametrize("every", [False, True])
def test_any_number_of_workers_trains_alike(every: bool, tmp_path: Path, arrays: Arrays) -> None:
    """Steps that follow from each other end alike on one worker, two and three, state included.

    Workers exchange sums over episodes, which each axis makes in its own way whatever stands on the
    other two: each member once suffices. All other pairs, on two workers, are the other variant.
    """
    cases = _cases(arrays, every)
    expected = [_trained(chosen, steps, Workers(), slice(None)) for chosen, steps in cases]
    sizes = _sizes(every)
    run_on(max(size for size, _ in sizes), _as_worker, str(tmp_path), arrays, every)
    for size, stride in sizes:
        for rank in range(size):
            ended = torch.load(tmp_path / f"{size}-{rank}.pt", weights_only=True)
            for (chosen, _), whole, found in zip(
                cases[::stride], expected[::stride], ended, strict=True
            ):
                axes_of_it = f"{chosen.sharing.name} {chosen.weighting.name} {chosen.learner.name}"
                assert found.keys() == whole.keys()
                for name, value in found.items():
                    close = torch.allclose(
                        value, whole[name], rtol=1e-8, atol=1e-10, equal_nan=True
                    )
                    off = (value - whole[name]).abs().max()
                    assert close, f"{axes_of_it}: {name} differs by {off} on {size} workers"


@pytest.mark.usefixtures("float64")
def test_aggregating_before_averaging_would_be_wrong(arrays: Arrays) -> None:
    """Guards the test above: the tempting order of the two operations must be visibly different on this data."""
    chosen = axes("hard", "pcgrad", "maml")
    episodes = episodes_of(chosen, arrays, count=9)
    algorithm = chosen.build()
    whole = meta_gradient(algorithm, perturbed(algorithm), episodes).grads
    parts = []
    for start, stop in SPLITS[3]:
        algorithm = chosen.build()
        share = tree_map(lambda leaf, s=start, e=stop: leaf[s:e], episodes)
        parts.append(
            (meta_gradient(algorithm, perturbed(algorithm), share).grads, (stop - start) / 9)
        )
    name = "model.encoders.0.stages.1.1.weight"
    wrong = sum(grads[name] * share for grads, share in parts)
    assert (wrong - whole[name]).norm() > 0.01 * whole[name].norm()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weighting", WEIGHTING)
def test_missing_labels_give_what_filtering_by_hand_gives(weighting: str, arrays: Arrays) -> None:
    chosen = axes("hard", weighting, "maml")
    episodes = tree_map(lambda leaf: leaf[:1], episodes_of(chosen, arrays))
    kept = torch.arange(episodes.query.inputs.shape[1]) % 3 > 0
    masks = {"sum": kept[None], "left": kept[None], "right": kept[None]}
    garbage = {
        name: torch.where(kept, target, -1) for name, target in episodes.query.targets.items()
    }
    garbage["sum"] = torch.where(kept, garbage["sum"].double(), torch.nan)
    masked = Episode(episodes.support, Batch(episodes.query.inputs, garbage, masks))
    by_hand = Batch(
        episodes.query.inputs[:, kept],
        {n: t[:, kept] for n, t in episodes.query.targets.items()},
        {},
    )
    results = []
    for given in (masked, Episode(episodes.support, by_hand)):
        algorithm = chosen.build()
        results.append(meta_gradient(algorithm, perturbed(algorithm), given))
    torch.testing.assert_close(results[0].losses, results[1].losses)
    for name, gradient in results[0].grads.items():
        torch.testing.assert_close(gradient, results[1].grads[name])


@pytest.mark.usefixtures("float64")
def test_the_whole_gradient_equals_finite_differences(arrays: Arrays) -> None:
    """Uncertainty's own parameters, the inner loop that depends on them and the soft penalty, all in one number."""
    chosen = axes("soft", "uncertainty", "maml").override({"sharing.strength": 0.01})
    episodes = episodes_of(chosen, arrays)
    algorithm = chosen.build()
    params = perturbed(algorithm)
    generator = torch.Generator().manual_seed(7)
    direction = {
        n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in params.items()
    }
    computed = sum(
        (meta_gradient(algorithm, params, episodes).grads[n] * direction[n]).sum() for n in params
    )

    def outer(shift: float) -> torch.Tensor:
        moved = {n: (v.detach() + shift * direction[n]).requires_grad_() for n, v in params.items()}
        losses = meta_gradient(algorithm, moved, episodes).losses
        s = moved["weighting.log_variance"]
        own = {n.removeprefix("model."): v for n, v in moved.items() if n.startswith("model.")}
        scale = torch.tensor([1.0, 1.0, 0.5])
        return (
            (scale * torch.exp(-s) * losses + s / 2).sum() + algorithm.model.penalty(own)
        ).detach()

    torch.testing.assert_close(computed, (outer(1e-6) - outer(-1e-6)) / 2e-6, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weighting", WEIGHTING)
def test_objectives_outlive_moves_of_the_weighting(
    weighting: str, arrays: dict[str, np.ndarray]
) -> None:
    """The outer step may move its state in place before a graph through the objective is followed."""
    chosen = axes("hard", weighting, "maml")
    gradients = []
    for moved in (False, True):
        algorithm = chosen.build()
        params = algorithm.init_params()
        support = tree_map(lambda leaf: leaf[0], episodes_of(chosen, arrays)).support
        loss = algorithm.objective(params, algorithm.predict(params, support.inputs), support)
        for buffer in algorithm.weighting.buffers() if moved else ():
            buffer.zero_()
        leaves = [value for name, value in params.items() if name.startswith("model.")]
        gradients.append(torch.autograd.grad(loss, leaves))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_infinite_losses_name_their_task(arrays: Arrays) -> None:
    chosen = experiment()
    algorithm = chosen.build()
    episodes = episodes_of(chosen, arrays)
    broken = {
        **episodes.query.targets,
        "sum": torch.full_like(episodes.query.targets["sum"], torch.nan, dtype=torch.float),
    }
    with pytest.raises(DivergedError, match="task 'sum' is nan"):
        meta_gradient(
            algorithm,
            algorithm.init_params(),
            Episode(episodes.support, episodes.query._replace(targets=broken)),
        )


def test_a_move_to_infinite_losses_is_refused(arrays: Arrays) -> None:
    algorithm = axes("hard", "famo", "maml").build()
    episodes = episodes_of(experiment(), arrays)
    params = algorithm.init_params()
    meta = meta_gradient(algorithm, params, episodes)
    moved = {name: torch.full_like(value, torch.inf) for name, value in params.items()}
    with pytest.raises(DivergedError, match="task 'left'"):
        update_after_step(algorithm, moved, episodes, meta)


@pytest.mark.usefixtures("float64")
def test_reptile_follows_the_auxiliary_terms_at_theta(arrays: Arrays) -> None:
    chosen = axes("adversarial", "static", "reptile")
    episodes = episodes_of(chosen, arrays)
    algorithm = chosen.build()
    params = perturbed(algorithm)
    grads = meta_gradient(algorithm, params, episodes).grads
    own = {
        name.removeprefix("model."): value
        for name, value in params.items()
        if name.startswith("model.")
    }
    terms = [
        torch.func.functional_call(algorithm.model, own, (x,), {"output": "auxiliary"})
        for x in episodes.query.inputs
    ]
    total = torch.stack([value for term in terms for value in term.values()]).sum() / len(terms)
    name = "model.discriminator.weight"
    (expected,) = torch.autograd.grad(total, [params[name]])
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(grads[name], expected)


def test_tasks_sharing_nothing_do_not_block_others(arrays: Arrays) -> None:
    chosen = axes("branching", "mgda", "maml").override(
        {"sharing.tree.sum.follows": "left", "sharing.tree.sum.stages": 0}
    )
    algorithm = chosen.build()
    meta = meta_gradient(algorithm, algorithm.init_params(), episodes_of(chosen, arrays))
    assert meta.weights[:2].sum() > 1.9
    assert meta.grads["model.trunks.left.stages.0.1.weight"].abs().max() > 0
