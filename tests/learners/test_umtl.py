"""UMTL: its reductions to MAML, its symmetries, its parts against naive loops and torch's own attention."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from raymtl.config import Experiment
from raymtl.data.base import Arrays
from raymtl.learners import BATCH_EMBEDDINGS, UMTL
from raymtl.learners.task_encoder import embedding, reconstruction_error, support_pairs
from raymtl.step.algorithm import Algorithm
from raymtl.step.meta_gradient import meta_gradient
from raymtl.step.workers import Workers
from raymtl.training import checkpoint
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import Batch, Episode, Params, UserError, select
from tests.conftest import axes, episodes_of, experiment, perturbed, with_missing_labels
from tests.learners.laws import (
    assert_gradient_of_finite_differences,
    assert_it_survives_saving,
    assert_unlabelled_examples_have_no_say,
    assert_vmap_equals_the_loop,
    first,
)
from tests.narrowing import checked, present, shared_inputs
from tests.processes import run_on

pytestmark = pytest.mark.usefixtures("float64")

EMITTERS = ("gate", "left", "shift", "rate", "loss_weight")


def umtl(sharing: str = "hard", weighting: str = "static", **values: Any) -> Experiment:
    small = {"dim": 6, "hidden": 8, "heads": 2, "num_prototypes": 3, "inner_steps": 2} | values
    return axes(sharing, weighting, "umtl").override(
        {f"learner.{key}": value for key, value in small.items()}
    )


def learner_of(algorithm: Algorithm) -> UMTL:
    return checked(algorithm.learner, UMTL)


def without_emission(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with the emitters as they start."""
    at = tuple(f"learner.{emitter}" for emitter in EMITTERS)
    return {
        n: torch.zeros_like(v).requires_grad_() if n.startswith(at) else v
        for n, v in params.items()
    }


def assert_alike(found: Params, expected: Params, tolerance: float = 1e-10) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance * 0.01, msg=name
        )


@pytest.mark.parametrize("sharing", ["hard", "cross_stitch"])
@pytest.mark.parametrize("initial", ["gate", "low_rank", "theta"])
def test_without_emission_it_is_maml(initial: str, sharing: str, arrays: Arrays) -> None:
    """Adapted weights, and the meta-gradients of theta and of the learned rates, which maml has one of for all steps."""
    chosen = umtl(sharing, initial=initial)
    algorithm = chosen.build()
    params = without_emission(perturbed(algorithm))
    for name in params:
        if name.startswith("learner.log_inner_lr."):
            params[name] = torch.full_like(params[name], 0.05).log().requires_grad_()
    plain = chosen.override(
        {"learner.name": "maml", "learner.learn_inner_lr": True, "learner.inner_steps": 2}
    )
    maml = plain.build()
    theirs = {
        n: params[n] if n in params and n.startswith("model.") else v
        for n, v in maml.init_params().items()
    }
    episodes = episodes_of(chosen, arrays)
    for steps in (0, 1, 2, 4):
        adapted, other = (
            p.adapt(q, first(episodes).support, steps)
            for p, q in ((algorithm, params), (maml, theirs))
        )
        assert_alike(adapted, {n: v for n, v in other.items() if n.startswith("model.")})
    ours = meta_gradient(algorithm, params, episodes)
    expected = meta_gradient(maml, theirs, episodes)
    torch.testing.assert_close(ours.losses, expected.losses)
    summed = {
        n: g.sum() if n.startswith("learner.log_inner_lr.") else g
        for n, g in ours.grads.items()
        if n in expected.grads
    }
    assert_alike(summed, expected.grads)
    assert any(n.startswith("learner.log_inner_lr.") for n in summed)


def test_training_starts_as_maml_and_then_leaves_it(arrays: Arrays) -> None:
    chosen = umtl()
    algorithm = chosen.build()
    params = algorithm.init_params()
    maml = chosen.override({"learner.name": "maml", "learner.inner_steps": 2}).build()
    support = first(episodes_of(chosen, arrays)).support
    ours, theirs = algorithm.adapt(params, support), maml.adapt(maml.init_params(), support)
    assert_alike(ours, theirs)
    grads = meta_gradient(algorithm, params, episodes_of(chosen, arrays)).grads
    for emitter in (
        "gate.heads.left.weight",
        "shift.heads.left.bias",
        "rate.heads.left.weight",
        "loss_weight",
    ):
        assert grads[f"learner.{emitter}"].abs().max() > 1e-9, emitter


@pytest.mark.parametrize("attends", ["memory", "batch"])
def test_the_order_of_the_support_set_moves_nothing(attends: str, arrays: Arrays) -> None:
    algorithm = umtl(attends=attends).build()
    params = perturbed(algorithm)
    support = first(with_missing_labels(episodes_of(umtl(), arrays))).support
    order = torch.randperm(len(support.inputs))
    shuffled = tree_map(lambda leaf: leaf[order], support)
    assert_alike(algorithm.adapt(params, shuffled), algorithm.adapt(params, support))
    z, again = (
        learner_of(algorithm).embed(algorithm.model, params, s) for s in (support, shuffled)
    )
    torch.testing.assert_close(again, z, rtol=1e-12, atol=1e-13)
    assert z.std(0).min() > 1e-4  # tasks are told apart


def test_tasks_in_another_order_end_the_same(arrays: Arrays) -> None:
    names = ["left", "right", "sum"]
    chosen = umtl()
    other = chosen.override({"data.tasks": names[::-1]})
    one, two = chosen.build(), other.build()
    params = perturbed(one)
    support = first(episodes_of(chosen, arrays)).support
    z, reversed_z = (learner_of(p).embed(p.model, params, support) for p in (one, two))
    torch.testing.assert_close(reversed_z, z.flip(0), rtol=1e-12, atol=1e-13)
    assert_alike(two.adapt(params, support), one.adapt(params, support))
    relations = learner_of(one).relations(params, z)
    torch.testing.assert_close(learner_of(two).relations(params, z.flip(0)), relations.flip(0, 1))


def layer(params: Params, name: str, x: Tensor) -> Tensor:
    return params[f"{name}.weight"] @ x + params[f"{name}.bias"]


def test_the_embedding_equals_a_loop(arrays: Arrays) -> None:
    """Over the labelled examples."""
    chosen = umtl()
    algorithm = chosen.build()
    params = perturbed(algorithm, 0.3)
    support = first(with_missing_labels(episodes_of(chosen, arrays))).support
    own = select(params, "learner")
    for index, task in enumerate(algorithm.tasks):
        features = algorithm.model(support.inputs, output="features")[task.name]
        features = torch.func.functional_call(
            algorithm.model, select(params, "model"), (support.inputs,), {"output": "features"}
        )[task.name]
        rows = support.masks[task.name].nonzero().flatten().tolist()
        encodings: dict[str, Callable[[Tensor], Tensor]] = {
            "left": lambda target: F.one_hot(target, 10).double(),
            "right": lambda target: F.one_hot(target, 10).double(),
            "sum": lambda target: (target.double()[None] - 9) / 16.5**0.5,
        }
        labels = encodings[task.name]
        y = {i: labels(support.targets[task.name][i]) for i in rows}
        stack = torch.stack(list(y.values()))
        shape = {
            i: (y[i] - stack.mean(0)) / (stack.var(0, correction=0) + 1e-6).sqrt() for i in rows
        }
        keys, values = [], []
        for i in rows:
            h = layer(own, f"pairs.{task.name}", torch.cat([features[i], y[i], shape[i]])).relu()
            h = layer(own, "pair", h).relu()
            keys.append(own["key"] @ h)
            values.append(layer(own, "value", h))
        pooled = []
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            scores = torch.stack([key[part] @ own["seed"][part] / 2 for key in keys])
            weights = scores.exp() / scores.exp().sum()
            pooled.append(sum(w * value[part] for w, value in zip(weights, values, strict=True)))
        expected = layer(own, "embedding", layer(own, "pooled", torch.cat(pooled)).relu()).tanh()
        z = learner_of(algorithm).embed(algorithm.model, params, support)[index]
        torch.testing.assert_close(z, expected, rtol=1e-10, atol=1e-12)


def test_the_reconstruction_is_of_means_and_correlations(arrays: Arrays) -> None:
    chosen = umtl(reconstruction=0.7)
    algorithm = chosen.build()
    params = perturbed(algorithm, 0.3)
    support = first(episodes_of(chosen, arrays)).support
    own, total = select(params, "learner"), torch.zeros(())
    for task, pairs in support_pairs(algorithm.model, params, support).items():
        f, y = pairs.features, pairs.labels
        joint = torch.corrcoef(torch.cat([f, y], 1).T)[: f.shape[1], f.shape[1] :]
        there = ((f.var(0) > 1e-3)[:, None] & (y.var(0) > 1e-3)).flatten()
        z = embedding(own, task, pairs, 2)
        hidden = (own["decoder.weight"] @ z + own["decoder.bias"]).relu()
        decoded = own[f"decode.{task}.weight"] @ hidden + own[f"decode.{task}.bias"]
        plain = torch.cat([f.mean(0), y.mean(0), y.square().mean(0)])
        means, products = decoded.split([len(plain), len(there)])
        error = reconstruction_error(own, task, pairs, z)
        rest = error * len(decoded) - (means - plain).square().sum()
        expected = torch.where(there, products - joint.nan_to_num().flatten(), products).square()
        # A feature or label that does not vary has correlation 0; one that hardly varies lies between.
        torch.testing.assert_close(rest, expected.sum(), rtol=2e-2, atol=1e-3)
        total = total + 0.7 * error / 3
    auxiliary = algorithm.learner.auxiliary(algorithm.model, params, support)
    torch.testing.assert_close(auxiliary, total, rtol=1e-10, atol=1e-12)


def test_it_attends_as_torchs_own_attention_does() -> None:
    algorithm = umtl().build()
    params = perturbed(algorithm, 0.3)
    theirs = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    parts = [params[f"learner.attention.{part}"] for part in ("query", "key", "value")]
    theirs.in_proj_weight.data = torch.cat(parts).detach()
    theirs.out_proj.weight.data = params["learner.attention.output"].detach()
    z, others = torch.randn(3, 8), torch.randn(5, 8)
    known = torch.tensor([True, False, True])
    tokens = torch.cat([z, others])[None]
    hidden = torch.cat([~known, torch.zeros(5, dtype=torch.bool)])[None]
    expected = z + theirs(z[None], tokens, tokens, key_padding_mask=hidden)[0][0]
    torch.testing.assert_close(
        learner_of(algorithm)._contexts(params, z, known, others), expected, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("emit", [True, False])
def test_logits_scale_the_static_weights(emit: bool, arrays: Arrays) -> None:
    """Equal logits are equal weights."""
    chosen = umtl(emit_loss_weights=emit)
    algorithm = chosen.build()
    params = without_emission(perturbed(algorithm))
    support = first(with_missing_labels(episodes_of(chosen, arrays))).support
    equal = algorithm.adapt(params, support)
    never = umtl(emit_loss_weights=False).build()
    assert_alike(
        equal, never.adapt({n: v for n, v in params.items() if n != "learner.loss_weight"}, support)
    )
    if emit:
        own = {**params, "learner.loss_weight": 10 * torch.randn(8)}
        omega = learner_of(algorithm)._emitted(algorithm.model, own, support)[
            "learner.emitted.loss_weights"
        ]
        torch.testing.assert_close(omega.sum(), torch.tensor(3.0))
        assert omega.std() > 0.05
        shares = {
            f"weighting.weights.{t.name}": w
            for t, w in zip(algorithm.tasks, omega.tolist(), strict=True)
        }
        static = chosen.override({"learner.emit_loss_weights": False, **shares}).build()
        expected = static.adapt(
            {n: v for n, v in params.items() if n != "learner.loss_weight"}, support
        )
        assert_alike(algorithm.adapt(own, support), expected)


def test_emitted_weights_multiply_those_of_the_weighting(arrays: Arrays) -> None:
    chosen = umtl().override({"weighting.weights.left": 3.0})
    algorithm = chosen.build()
    params = without_emission(perturbed(algorithm))
    support = first(episodes_of(chosen, arrays)).support
    equal, plain = algorithm.adapt(params, support), umtl().build().adapt(params, support)
    never = chosen.override({"learner.emit_loss_weights": False}).build()
    assert_alike(
        equal, never.adapt({n: v for n, v in params.items() if n != "learner.loss_weight"}, support)
    )
    assert any((equal[n] - plain[n]).abs().max() > 1e-4 for n in equal)


def test_rates_are_positive_and_bounded_whatever_is_emitted(arrays: Arrays) -> None:
    algorithm = umtl().build()
    params = perturbed(algorithm, 3.0)
    support = first(episodes_of(umtl(), arrays)).support
    given = {**params, **learner_of(algorithm)._emitted(algorithm.model, params, support)}
    for step in range(3):
        for name, rate in learner_of(algorithm).rates(given, step).items():
            learned = params[f"learner.log_inner_lr.{name.removeprefix('model.')}"][
                min(step, 1)
            ].exp()
            assert rate > 0
            assert 0.99 * torch.e**-2 <= rate / learned <= 1.01 * torch.e**2


def test_emitted_deltas_have_their_form(arrays: Arrays) -> None:
    """A low-rank delta has that rank, a gate scales units."""
    support = first(episodes_of(umtl(), arrays)).support
    for initial in ("low_rank", "gate"):
        algorithm = umtl(initial=initial, rank=2).build()
        params = perturbed(algorithm)
        start = algorithm.adapt(params, support, 0)
        name = "model.encoders.0.stages.0.1.weight"
        delta = start[name] - params[name]
        if initial == "low_rank":
            assert torch.linalg.matrix_rank(delta) == 2
        else:
            gates = start[name] / params[name]
            torch.testing.assert_close(gates, gates[:, :1].expand_as(gates))
            assert gates[:, 0].std() > 1e-3


@pytest.mark.parametrize("attends", ["memory", "batch"])
def test_unlabelled_examples_have_no_say(attends: str, arrays: Arrays) -> None:
    assert_unlabelled_examples_have_no_say(umtl("cross_stitch", attends=attends), arrays)


def test_a_task_without_any_label_has_no_say(arrays: Arrays) -> None:
    """Its embedding is 0, the others do not attend to it, and what is emitted for them is as if it were not there."""
    chosen = umtl()
    algorithm = chosen.build()
    params = perturbed(algorithm, 0.3)
    support = first(episodes_of(chosen, arrays)).support
    none = {"sum": torch.zeros(len(support.inputs), dtype=torch.bool)}
    hidden = support._replace(
        masks=none, targets={**support.targets, "sum": support.targets["sum"] * torch.nan}
    )
    z = learner_of(algorithm).embed(algorithm.model, params, hidden)
    assert z.isfinite().all() and not z[2].any() and z[:2].all()
    alone = chosen.override({"data.tasks": ["left", "right"]}).build()
    pair = Batch(support.inputs, {n: support.targets[n] for n in ("left", "right")}, {})
    model = {n: v for n, v in params.items() if "sum" not in n.split(".")}
    expected = learner_of(alone)._emitted(alone.model, model, pair)
    found = learner_of(algorithm)._emitted(algorithm.model, params, hidden)
    weights = found.pop("learner.emitted.loss_weights")
    torch.testing.assert_close(weights[:2], expected.pop("learner.emitted.loss_weights"))
    assert not weights[2]
    assert_alike(found, expected)


def test_absent_and_unlabelled_tasks_are_alike(arrays: Arrays) -> None:
    algorithm = umtl().build()
    params = perturbed(algorithm)
    support = first(episodes_of(umtl(), arrays)).support
    own = Batch(
        dict.fromkeys(("left", "sum"), shared_inputs(support)),
        {n: support.targets[n] for n in ("left", "sum")},
        {},
    )
    hidden = support._replace(masks={"right": torch.zeros(len(support.inputs), dtype=torch.bool)})
    z, expected = (learner_of(algorithm).embed(algorithm.model, params, s) for s in (own, hidden))
    torch.testing.assert_close(z, expected)
    assert_alike(algorithm.adapt(params, own), algorithm.adapt(params, hidden))


@pytest.mark.parametrize(
    "values", [{}, {"initial": "low_rank"}, {"emit_rates": False, "num_prototypes": 0}]
)
def test_the_meta_gradient_equals_finite_differences(
    values: dict[str, Any], arrays: Arrays
) -> None:
    assert_gradient_of_finite_differences(umtl(reconstruction=0, **values), arrays)


def test_the_reconstruction_leaves_the_model_alone(
    arrays: Arrays,
) -> None:
    """Its gradient is that of finite differences."""
    chosen = umtl(reconstruction=0.5)
    algorithm = chosen.build()
    params = perturbed(algorithm)
    support = first(with_missing_labels(episodes_of(chosen, arrays))).support

    def value(p: Params) -> Tensor:
        return present(algorithm.learner.auxiliary(algorithm.model, p, support))

    grads = dict(
        zip(
            params,
            torch.autograd.grad(value(params), list(params.values()), allow_unused=True),
            strict=True,
        )
    )
    assert all(grads[n] is None for n in params if n.startswith("model."))
    names = [n for n, g in grads.items() if g is not None]
    direction = {n: torch.randn_like(params[n]) for n in names}

    def moved(s: float) -> dict[str, torch.Tensor]:
        return {
            n: v.detach() + s * direction[n] if n in direction else v for n, v in params.items()
        }

    numeric = (value(moved(1e-6)) - value(moved(-1e-6))) / 2e-6
    torch.testing.assert_close(
        sum((grads[n] * direction[n]).sum() for n in names), numeric, rtol=1e-6, atol=1e-9
    )
    with_it, without = (
        meta_gradient(c.build(), params, episodes_of(chosen, arrays)).grads
        for c in (chosen, umtl(reconstruction=0))
    )
    for name in params:
        assert torch.allclose(with_it[name], without[name], rtol=1e-10, atol=1e-13) == (
            name not in names
        ), name


def test_training_attends_to_constant_batch_embeddings(arrays: Arrays) -> None:
    """The meta-gradient is that of a plain loop in which the embeddings of all episodes are numbers."""
    chosen = umtl(attends="batch", reconstruction=0)
    algorithm = chosen.build()
    params = perturbed(algorithm)
    episodes = episodes_of(chosen, arrays)
    apart = [tree_map(lambda leaf, i=i: leaf[i], episodes) for i in range(3)]
    batch = torch.stack(
        [learner_of(algorithm).embed(algorithm.model, params, e.support).detach() for e in apart]
    )

    def total(given: dict[str, Tensor]) -> Tensor:
        losses = []
        for support, query in apart:
            predictions = algorithm.predict(algorithm.adapt(given, support), query.inputs)
            losses += [
                task.loss(predictions[task.name], query.targets[task.name]).mean() / 3
                for task in algorithm.tasks
            ]
        return sum(losses, start=torch.zeros(()))

    grads = meta_gradient(algorithm, params, episodes).grads
    expected = torch.autograd.grad(
        total({**params, BATCH_EMBEDDINGS: batch}), list(params.values()), allow_unused=True
    )
    for (name, gradient), other in zip(grads.items(), (dict(zip(params, expected, strict=True))[n] for n in grads), strict=True):  # fmt: skip
        torch.testing.assert_close(
            gradient, torch.zeros_like(gradient) if other is None else other, msg=name
        )
    alone = torch.autograd.grad(total(params), params["learner.attention.output"])[0]
    assert (grads["learner.attention.output"] - alone).abs().max() > 1e-6


def test_with_memory_alone_the_batch_is_not_read(arrays: Arrays) -> None:
    algorithm = umtl().build()
    params = perturbed(algorithm)
    support = first(episodes_of(umtl(), arrays)).support
    assert not algorithm.learner.uses_batch_context
    given = {**params, BATCH_EMBEDDINGS: torch.randn(4, 3, 6)}
    assert_alike(algorithm.adapt(given, support), algorithm.adapt(params, support))


def test_relations_are_cosines_of_lone_tasks(arrays: Arrays) -> None:
    algorithm = umtl().build()
    params = perturbed(algorithm, 0.3)
    z = torch.randn(5, 6).tanh()
    u = z @ params["learner.project"].T
    found = learner_of(algorithm).relations(params, z)
    one, memory = torch.ones(1, dtype=torch.bool), params["learner.prototypes"]
    e = [learner_of(algorithm)._contexts(params, row[None], one, memory)[0] for row in u]
    for i in range(5):
        for j in range(5):
            torch.testing.assert_close(
                found[i, j], F.cosine_similarity(e[i], e[j], dim=0), rtol=1e-10, atol=1e-12
            )
    assert (found - torch.eye(5)).abs().max() > 0.01


@pytest.mark.parametrize("second_phase", ["all", "learners"])
def test_each_phase_moves_exactly_what_it_says(
    second_phase: str, arrays: Arrays, tmp_path: Path
) -> None:
    saved: list[dict[str, Tensor]] = []
    chosen = umtl(weighting="uncertainty", first_phase=2, second_phase=second_phase).override(
        {"train.steps": 4, "train.eval_every": 2, "train.schedule": "constant", "train.lr": 0.01}
    )

    def report(metrics: dict[str, float]) -> None:
        kept_at = tmp_path / "checkpoints" / f"step_{metrics['step']:08d}"
        algorithm = chosen.build()
        params = algorithm.init_params()
        found = checkpoint.read(kept_at)
        assert found is not None
        checkpoint.restore(found, algorithm, params, _adam(params))
        saved.append({name: value.detach().clone() for name, value in params.items()})

    train_loop(
        chosen,
        arrays,
        local_batches(chosen, arrays),
        TrainContext(report, lambda row: None),
        tmp_path,
    )
    start = chosen.build().init_params()
    moved = [
        {name for name in start if not torch.equal(before[name], after[name])}
        for before, after in ((start, saved[0]), (saved[0], saved[1]))
    ]
    learners = {name for name in start if name.startswith(("model.", "learner.log_inner_lr."))}
    weighting = {name for name in start if name.startswith("weighting.")}
    meta = set(start) - learners - weighting
    assert moved[0] == meta | weighting
    assert moved[1] == learners | weighting | (meta if second_phase == "all" else set())


@pytest.mark.parametrize("parameter", ["model.w", "learner.log_inner_lr.w"])
def test_theta_moves_from_first_phase_on(parameter: str) -> None:
    learner = umtl(first_phase=3).learner
    assert [learner.moves(step, parameter) for step in range(5)] == [False] * 3 + [True] * 2


def _adam(params: dict[str, Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam([{"params": [value], "lr_scale": 1.0} for value in params.values()])


@pytest.mark.parametrize(
    "values", [{}, {"attends": "batch"}, {"initial": "low_rank", "first_order": True}]
)
def test_vmap_equals_the_loop(values: dict[str, Any], arrays: Arrays) -> None:
    assert_vmap_equals_the_loop(umtl("cross_stitch", **values), arrays)


def _on_one_of_two(rank: int, folder: str, episodes: Episode) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    algorithm = umtl(attends="batch").build()
    own = tree_map(lambda leaf: leaf[slice(0, 4) if rank == 0 else slice(4, 5)], episodes)
    grads = meta_gradient(algorithm, perturbed(algorithm), own, Workers(rank, 2)).grads
    torch.save({name: value.detach() for name, value in grads.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_attend_to_one_batch(arrays: Arrays, tmp_path: Path) -> None:
    chosen = umtl(attends="batch")
    episodes = with_missing_labels(episodes_of(chosen, arrays, count=5))
    algorithm = chosen.build()
    expected = meta_gradient(algorithm, perturbed(algorithm), episodes).grads
    run_on(2, _on_one_of_two, str(tmp_path), episodes)
    for rank in range(2):
        assert_alike(torch.load(tmp_path / f"{rank}.pt", weights_only=True), expected, 1e-8)


@pytest.mark.parametrize("initial", ["gate", "low_rank"])
def test_an_adapted_model_survives_saving(initial: str, arrays: Arrays, tmp_path: Path) -> None:
    assert_it_survives_saving(umtl(initial=initial), arrays, tmp_path)


def test_it_says_what_it_cannot_learn() -> None:
    one = experiment(data__tasks=["left"]).data.make_tasks()[0]
    unread = one._replace(encode_target=None)
    assert UMTL().check([one]) is None
    assert UMTL().check([unread]) == "it reads labels, and those of task 'left' have no encoding"
    odd = one._replace(head=lambda shape: nn.Sequential(nn.Linear(shape[0], 10)))
    assert "that of task 'left' is a Sequential" in str(UMTL().check([odd]))
    with pytest.raises(
        UserError, match=r"learner.hidden: expected a multiple of learner.heads: 3, got 32"
    ):
        UMTL(heads=3)
