"""Tasks that are alike are computed together: the same numbers as one by one, in float64."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raymtl.data.base import Arrays
from raymtl.encoders import MLPSpec
from raymtl.learners import MAML
from raymtl.sharing import HardSpec
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, TaskAxis
from raymtl.step.meta_gradient import MetaGradient, meta_gradient
from raymtl.tasks import (
    binary,
    classification,
    groups,
    label_counts,
    loss_sums,
    multilabel,
    regression,
    task_groups,
)
from raymtl.types import Batch, Episode, Task
from raymtl.weighting import PCGradSpec, StaticSpec
from tests.conftest import episodes_of, perturbed, star, two_steps, with_missing_labels

NEVER = 1_000_000

ALIKE: dict[str, Sequence[Task]] = {
    "classification": [classification(f"t{i}", 4) for i in range(5)],
    "binary": [binary(f"t{i}") for i in range(5)],
    "regression": [regression(f"t{i}", i - 1.5, 0.5 + i) for i in range(5)],
    "huber": [regression(f"t{i}", i - 1.5, 0.5 + i, loss="huber") for i in range(5)],
    "vectors": [regression(f"t{i}", (0.0, i + 0.5), (1.0, i + 0.2)) for i in range(5)],
    "multilabel": [multilabel(f"t{i}", 3) for i in range(5)],
}


def labels(task: Task, number: int, generator: torch.Generator) -> Tensor:
    """Random ones, with missing components where the kind knows of such."""
    if task.kind.has_class_targets:
        return torch.randint(max(2, task.out_features), (number,), generator=generator)
    values = torch.rand(number, *task.target_shape, generator=generator)
    if task.kind.has_label_sets:
        values = values.round()
    if not task.target_shape:
        return values
    holes = torch.rand(number, *task.target_shape, generator=generator) < 0.4
    return torch.where(holes, torch.nan, values)


def batch_of(tasks: Sequence[Task], number: int, masked: bool) -> Batch:
    generator = torch.Generator().manual_seed(number)
    targets = {task.name: labels(task, number, generator) for task in tasks}
    masks = {}
    if masked:
        masks = {task.name: torch.rand(number, generator=generator) > 0.3 for task in tasks}
    return Batch(torch.rand(number, 6, generator=generator), targets, masks)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ALIKE)
def test_losses_and_counts_are_those_of_single_tasks(
    kind: str, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, batch = ALIKE[kind], batch_of(ALIKE[kind], 7, masked)
    generator = torch.Generator().manual_seed(1)
    found = {t.name: torch.randn(7, t.out_features, generator=generator) for t in tasks}
    expected = loss_sums(tasks, found, batch), label_counts(tasks, batch)
    monkeypatch.setattr(groups, "FEWEST", 2)
    monkeypatch.setattr(groups, "MOST", 3)
    assert task_groups(tasks, [batch]) == ((0, 1, 2), (3, 4))
    torch.testing.assert_close(loss_sums(tasks, found, batch), expected[0])
    assert torch.equal(label_counts(tasks, batch), expected[1])


def test_tasks_of_different_labels_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "FEWEST", 2)
    tasks = [ALIKE["regression"][0], ALIKE["classification"][1], ALIKE["regression"][2]]
    batch = batch_of(tasks, 7, masked=False)
    assert task_groups(tasks, [batch]) == ((0, 2), (1,))
    longer = batch._replace(targets={**batch.targets, "t2": torch.zeros(9)})
    assert task_groups(tasks, [batch, longer]) == ((0,), (1,), (2,))


def assert_equal(one: MetaGradient, other: MetaGradient) -> None:
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-10, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(one.weights, other.weights, rtol=1e-7, atol=1e-9)
    for name, gradient in other.grads.items():
        torch.testing.assert_close(one.grads[name], gradient, rtol=1e-8, atol=1e-11)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("axis", ["loop", "vmap"])
@pytest.mark.parametrize(("sharing", "weighting", "learner"), star())
def test_every_members_step_equals_single_tasks(
    sharing: str,
    weighting: str,
    learner: str,
    axis: TaskAxis,
    arrays: Arrays,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = two_steps(sharing, weighting, learner)
    episodes = with_missing_labels(episodes_of(chosen, arrays, count=2))
    results = []
    for fewest in (2, NEVER):
        monkeypatch.setattr(groups, "FEWEST", fewest)
        algorithm = chosen.build()
        params = perturbed(algorithm)
        results.append(meta_gradient(algorithm, params, episodes, execution=ExecutionConfig(axis)))
    assert_equal(*results)


def wide(kind: str, weighting: PCGradSpec | StaticSpec) -> Algorithm:
    tasks = tuple(ALIKE[kind])
    torch.manual_seed(0)
    model = HardSpec().build(tasks, [MLPSpec(hidden=(8,)).build((6,))])
    return Algorithm(tasks, model, weighting.build(tasks), MAML(inner_steps=0))


def own_inputs(tasks: Sequence[Task], number: int) -> Batch:
    """A batch in which each task has inputs of its own."""
    batch = batch_of(tasks, number, masked=True)
    generator = torch.Generator().manual_seed(2)
    inputs = {task.name: torch.rand(number, 6, generator=generator) for task in tasks}
    return batch._replace(inputs=inputs)


def stacked(batch: Batch) -> Episode:
    """One episode of the batch."""
    one = tree_map(lambda leaf: leaf[None], batch)
    return Episode(one, one)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weighting", [PCGradSpec(), StaticSpec()])
@pytest.mark.parametrize("shares_inputs", [True, False])
@pytest.mark.parametrize("kind", ALIKE)
def test_tasks_with_any_inputs_step_alike(
    kind: str,
    shares_inputs: bool,
    weighting: PCGradSpec | StaticSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where some tasks have no labels at all, and groups are longer than what is at once."""
    tasks = ALIKE[kind]
    batch = batch_of(tasks, 7, masked=True) if shares_inputs else own_inputs(tasks, 7)
    batch = batch._replace(masks={**batch.masks, "t1": torch.zeros(7, dtype=torch.bool)})
    monkeypatch.setattr("raymtl.step.outer_loss.EXAMPLES_AT_ONCE", 14)
    results = []
    for fewest in (2, NEVER):
        monkeypatch.setattr(groups, "FEWEST", fewest)
        algorithm = wide(kind, weighting)
        results.append(meta_gradient(algorithm, perturbed(algorithm), stacked(batch)))
    assert_equal(*results)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "most_mib"), [("static", 20), ("pcgrad", 190)])
def test_a_thousand_tasks_need_little_memory(method: str, most_mib: float) -> None:
    """Their gradients alone are 71 MiB; one graph for each task takes 160."""
    # What is given back must leave the process: else the peak is that of the allocator's pools.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "tests.step.memory_of_many_tasks", method]
    ended = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert 0 < float(ended.stdout) < most_mib
