"""Episodes of any mix in one meta-batch: what is bucketed for vmap gives the numbers of a plain loop."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from raymtl.config import Experiment
from raymtl.config.sections import Train
from raymtl.data.episodes import build_episodes, on_device
from raymtl.data.sources.combined import Several
from raymtl.encoders import MLPSpec
from raymtl.learners import MAML, Plain
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, stacks
from raymtl.step.meta_gradient import MetaGradient, meta_gradient
from raymtl.tasks import classification, loss_sums, regression
from raymtl.tasks.regression import REGRESSION
from raymtl.types import Batch, Episode, MetaBatch, Metric, Task, UserError
from raymtl.weighting import StaticSpec
from tests.conftest import ADAPTING, SHARING, experiment, perturbed
from tests.data.own import write_parquet
from tests.narrowing import shared_inputs

SEVERAL: dict[str, Any] = {
    "name": "several",
    "parts": {
        "scene": {"name": "digits", "shots": (1, 2), "queries": 1},
        "pair": {
            "name": "digits",
            "episodes": "classes",
            "ways": (2, 4),
            "shots": (1, 3),
            "queries": 2,
        },
    },
}


def mixed(learner: str, sharing: str, episodes: str = "one", **values: Any) -> Experiment:
    """Both parts, or where the learner takes classes alone the second and a third like it."""
    chosen = experiment()
    tree = chosen.model_dump(mode="json")
    pair = SEVERAL["parts"]["pair"]
    scene = {**SEVERAL["parts"]["scene"], "tasks": ("left", "right")}
    parts_of_choice = (
        SEVERAL["parts"],
        {"pair": pair, "scene": scene},
        {"pair": pair, "other": pair},
    )
    for parts in parts_of_choice:
        try:
            with_parts = Experiment.model_validate(
                tree | {"data": {**SEVERAL, "parts": parts, "episodes": episodes}}
            ).resolve()
            return with_parts.override({"learner.name": learner, "sharing.name": sharing, **values})
        except UserError as error:
            last = error
    raise last


def drawn(chosen: Experiment, count: int) -> tuple[Episode, ...]:
    arrays = chosen.data.load()
    built, _ = build_episodes(
        chosen.data, arrays, seed=1, split="train", step=0, indices=range(count)
    )
    return on_device(built, "cpu")


def singles(episodes: MetaBatch) -> list[Episode]:
    """Every episode as a stack of its own."""
    return [
        tree_map(lambda leaf, i=i: leaf[i : i + 1], stack)
        for stack in stacks(episodes)
        for i in range(len(next(iter(stack.query.targets.values()))))
    ]


def assert_equal_grads(one: MetaGradient, other: MetaGradient) -> None:
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-10, atol=1e-12, equal_nan=True)
    assert any(gradient.abs().max() > 1e-6 for gradient in one.grads.values())
    for name, gradient in one.grads.items():
        torch.testing.assert_close(gradient, other.grads[name], rtol=1e-8, atol=1e-11)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("learner", "sharing", "episodes"),
    [
        *((learner, "hard", way) for learner in ADAPTING for way in ("one", "together")),
        *(("maml", sharing, "one") for sharing in SHARING),
        *(("protonet", sharing, "together") for sharing in SHARING),
    ],
)
def test_buckets_of_any_mix_equal_the_loop(learner: str, sharing: str, episodes: str) -> None:
    chosen = mixed(learner, sharing, episodes)
    if "inner_steps" in type(chosen.learner).model_fields and learner != "imaml":
        chosen = chosen.override({"learner.inner_steps": 1})  # buckets do not see how many
    batch = drawn(chosen, 4)  # of scenes and classes, two have the same shape
    assert len(batch) > 1
    results = []
    for way, of in ((ExecutionConfig("vmap"), batch), (ExecutionConfig("loop"), singles(batch))):
        algorithm = chosen.build()
        results.append(meta_gradient(algorithm, perturbed(algorithm), of, execution=way))
    assert_equal_grads(*results)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("micro_batches", [2, 3])
def test_passes_over_buckets_equal_one_pass(micro_batches: int) -> None:
    chosen = mixed("maml", "hard", **{"weighting.name": "pcgrad"})
    batch = drawn(chosen, 8)
    results = []
    for number in (1, micro_batches):
        algorithm = chosen.build()
        results.append(
            meta_gradient(
                algorithm,
                perturbed(algorithm),
                batch,
                execution=ExecutionConfig(micro_batches=number),
            )
        )
    assert_equal_grads(*results)


def dense(name: str, side: int) -> Task:
    """A value for every pixel, [N, side, side]: squared error, a mean over the pixels."""
    return Task(
        name=name,
        kind=REGRESSION,
        out_features=side * side,
        head=lambda shape: nn.Linear(shape[0], side * side),
        loss=lambda prediction, target: (prediction - target.flatten(1)).square().mean(1),
        metrics={"mse": Metric(lambda p, target: (p - target.flatten(1)).square().mean(1), False)},
        decode=lambda prediction: prediction.mean(1),
        encode_target=lambda target: target.flatten(1),
    )


def batch_of(
    tasks: tuple[Task, ...], present: tuple[str, ...], number: int, generator: torch.Generator
) -> Batch:
    """Random inputs [number + t, 6] of its own for the t-th task, with labels of its kind."""
    inputs, targets = {}, {}
    for index, task in enumerate(tasks):
        if task.name in present:
            inputs[task.name] = torch.randn(number + index, 6, generator=generator)
            if task.kind.name == "classification":
                targets[task.name] = torch.randint(
                    task.out_features, (number + index,), generator=generator
                )
            elif task.out_features > 1:
                targets[task.name] = torch.randn(number + index, 3, 3, generator=generator)
            else:
                targets[task.name] = torch.randn(number + index, generator=generator)
    return Batch(inputs, targets, {})


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "sharing", [name for name in SHARING if name != "relation"]
)  # which wants heads alike
def test_all_kinds_go_together_in_a_batch(
    sharing: str,
) -> None:
    """Against the sum over episodes and tasks, each adapted alone by hand-written loops, under equal weights."""
    tasks = (classification("a", 3), regression("b", 0.5, 2.0), dense("c", 3))
    generator = torch.Generator().manual_seed(5)
    kinds = [("a", "b", "c"), ("a",), ("b", "c"), ("c",), ("a", "b", "c"), ("a", "b"), ("c",)]
    episodes = [
        Episode(
            *(
                tree_map(lambda leaf: leaf[None], batch_of(tasks, present, n, generator))
                for n in (4, 3)
            )
        )
        for present in kinds
    ]
    spec = experiment(sharing__name=sharing).sharing
    encoders = [MLPSpec(hidden=(7, 5)).build((6,)) for _ in range(spec.num_encoders(3))]
    algorithm = Algorithm(
        tasks, spec.build(tasks, encoders), StaticSpec().build(tasks), MAML(inner_steps=2)
    )
    params = perturbed(algorithm)
    meta = meta_gradient(algorithm, params, episodes)

    sums, counts, rest = torch.zeros(3), torch.zeros(3), torch.zeros(())
    for episode in episodes:
        support, query = (tree_map(lambda leaf: leaf[0], part) for part in episode)
        adapted = algorithm.adapt(params, support)
        sums = sums + loss_sums(tasks, algorithm.predict(adapted, query.inputs), query)
        counts = counts + torch.tensor(
            [float(len(query.targets.get(task.name, ()))) for task in tasks]
        )
        model = {name[6:]: value for name, value in adapted.items() if name.startswith("model.")}
        terms = torch.func.functional_call(
            algorithm.model, model, (query.inputs,), {"output": "auxiliary"}
        )
        rest = rest + sum(terms.values()) / len(episodes)
    penalty = algorithm.model.penalty(
        {name[6:]: value for name, value in params.items() if name.startswith("model.")}
    )
    losses = sums / counts
    torch.testing.assert_close(meta.losses, losses.detach(), rtol=1e-10, atol=1e-12)
    expected = torch.autograd.grad(
        meta.weights @ losses + rest + penalty, list(params.values()), allow_unused=True
    )
    for name, gradient in zip(params, expected, strict=True):
        torch.testing.assert_close(
            meta.grads[name],
            torch.zeros_like(params[name]) if gradient is None else gradient,
            rtol=1e-8,
            atol=1e-11,
        )


@pytest.mark.usefixtures("float64")
def test_absent_tasks_are_fully_masked_tasks() -> None:
    chosen = mixed("maml", "hard", **{"weighting.name": "pcgrad"})
    batch = drawn(chosen, 6)

    def without(part: Batch) -> Batch:
        """With inputs of their own for the tasks that have any label, and nothing of the others."""
        present = [name for name, mask in part.masks.items() if mask.any()]
        return Batch(
            dict.fromkeys(present, shared_inputs(part)),
            {n: part.targets[n] for n in present},
            {n: part.masks[n] for n in present},
        )

    lacking = [Episode(without(e.support), without(e.query)) for e in singles(batch)]
    assert any(len(episode.query.targets) < len(chosen.data.task_names) for episode in lacking)
    algorithm = chosen.build()
    params = perturbed(algorithm)
    assert_equal_grads(
        meta_gradient(algorithm, params, batch), meta_gradient(chosen.build(), params, lacking)
    )


def test_episodes_are_bucketed_by_shape() -> None:
    """Domains stay with their episodes."""
    chosen = mixed("maml", "hard")
    arrays = chosen.data.load()
    buckets, domains = build_episodes(
        chosen.data, arrays, seed=1, split="train", step=0, indices=range(20)
    )
    numbers = [len(stack.query.inputs) for stack in buckets]
    assert sum(numbers) == len(domains) == 20
    assert (
        len(
            {
                (shared_inputs(stack.support).shape[1:], shared_inputs(stack.query).shape[1:])
                for stack in buckets
            }
        )
        > 2
    )
    names = iter(domains)
    for stack, number in zip(buckets, numbers, strict=True):
        for index, domain in zip(range(number), names, strict=False):
            assert bool(stack.query.masks["pair_number"][index].any()) == domain.startswith("pair ")
            assert bool(stack.query.masks["scene_sum"][index].any()) == domain.startswith("scene ")


def test_ways_and_shots_fill_their_bounds() -> None:
    chosen = experiment(
        data__episodes="classes", data__ways=[2, 4], data__shots=[1, 3], data__queries=2
    )
    assert chosen.build().tasks[0].out_features == 4
    seen = set()
    for stack in drawn(chosen, 80):
        ways = int(stack.query.targets["number"].max()) + 1
        seen.add((ways, shared_inputs(stack.support).shape[1] // ways))
    assert seen == set(itertools.product((2, 3, 4), (1, 2, 3)))


def test_parts_are_drawn_with_their_odds() -> None:
    data = {**SEVERAL, "odds": {"scene": 3.0}}
    chosen = Experiment.model_validate({"data": data, "encoder": {"name": "mlp"}}).resolve()
    _, domains = build_episodes(
        chosen.data, chosen.data.load(), seed=0, split="train", step=0, indices=range(600)
    )
    share = sum(domain.startswith("scene") for domain in domains) / 600
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 600) ** 0.5


def tables(tmp_path: Path, **values: Any) -> Several:
    """Two tables with 60 and with 540 rows for training."""
    parts = {}
    for name, rows in (("few", 60), ("many", 540)):
        splits = ["train"] * rows + ["val"] * 10 + ["test"] * 10
        numbers = np.linspace(0, 1, len(splits)).tolist()
        content = {"x": numbers, "y": numbers, "split": splits}
        path = write_parquet(tmp_path / f"{name}.parquet", content)
        tasks = {"y": {"kind": "regression"}}
        parts[name] = {
            "name": "files",
            "path": str(path),
            "tasks": tasks,
            "split": {"column": "split"},
        }
    return Several.model_validate({"parts": parts, **values}).resolve()


@pytest.mark.parametrize(
    ("temperature", "share"), [(1, 0.9), (2, 0.75), ("inf", 0.5), (None, 0.5), (1e-3, 1.0)]
)
def test_temperature_draws_by_size(temperature: float | None, share: float, tmp_path: Path) -> None:
    source = tables(tmp_path, temperature=temperature)
    arrays, number = source.load(), 2000
    _, domains = build_episodes(
        source, arrays, seed=0, split="train", step=0, indices=range(number)
    )
    found = sum(domain.startswith("many") for domain in domains) / number
    assert abs(found - share) <= 4 * (share * (1 - share) / number) ** 0.5
    expected = source.without_support(queries=1).expected_labels(arrays)
    assert expected == pytest.approx({"few_y": 1 - share, "many_y": share})


def test_a_task_with_less_than_a_row_a_step_is_noted(tmp_path: Path) -> None:
    source = tables(tmp_path, temperature=1)
    arrays = source.load()
    for batch_size, noted in ((5, ["task 'few_y'"]), (20, [])):
        chosen = Experiment(
            data=source,
            encoder=MLPSpec(),
            learner=Plain(),
            train=Train(batch_size=batch_size),
        )
        notes = chosen.notes_on_steps(arrays)
        assert [note.place for note in notes] == noted
        assert all(note.key == "train.batch_size" and "0.5 of its" in note.text for note in notes)


def test_temperature_and_odds_are_not_both(tmp_path: Path) -> None:
    for values in ({"odds": {"few": 2.0}}, {"episodes": "together"}):
        with pytest.raises(UserError, match=r"data\.temperature: expected none with data\."):
            tables(tmp_path, temperature=2, **values)


def test_single_tasks_see_their_parts_episodes() -> None:
    chosen = mixed("maml", "hard")
    alone = chosen.data.select_tasks(("pair_number",))
    assert alone.task_names == ("pair_number",)
    _, domains = build_episodes(alone, alone.load(), seed=0, split="val", step=0, indices=range(20))
    assert all(domain.startswith("pair ") for domain in domains)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"parts": {"a": {"name": "digits"}, "b": {"name": "sinusoid"}}},
            r"data.parts.b: expected inputs of shape",
        ),
        (
            {"odds": {"other": 1.0}},
            r"data.odds: expected names of data.parts: \['scene', 'pair'\], got 'other'",
        ),
        ({"parts": {"a_b": {"name": "digits"}}}, r"data.parts.a_b: expected"),
        (
            {"parts": {"a": {"name": "digits", "shots": [3, 1]}}},
            r"data.parts.a.shots: expected a number of at least 1",
        ),
        (
            {"parts": {"a": {"name": "digits", "builders": 2}}},
            r"data.parts.a.builders: expected none, since it is the same for all parts, got 2",
        ),
    ],
)
def test_impossible_mixes_name_their_key(data: dict[str, Any], message: str) -> None:
    from raymtl.config import parse

    with pytest.raises(UserError, match=message):
        parse({"data": {"name": "several", **data}})
