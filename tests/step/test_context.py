"""The totals of a step: how many labelled examples each task has, over all episodes."""

import pytest
import torch
from torch import Tensor

from raymtl.step.context import StepContext, step_batch
from raymtl.step.execution import ExecutionConfig
from raymtl.step.workers import Workers
from raymtl.types import Batch, Episode, Task
from tests.conftest import experiment
from tests.tasks.test_kinds import KINDS, random_target

NUM_EPISODES = 3


def labels_of(task: Task, size: int, seed: int, masked: bool) -> tuple[Tensor, Tensor | None]:
    """Targets [E, N, ...] and their mask [E, N]."""
    targets = [random_target(task, size, seed + i) for i in range(NUM_EPISODES)]
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(NUM_EPISODES, size, generator=generator) < 0.5
    return torch.stack(targets), mask if masked else None


def stack_of(labels: dict[str, tuple[Tensor, Tensor | None]]) -> Episode:
    targets = {name: target for name, (target, _) in labels.items()}
    masks = {name: mask for name, (_, mask) in labels.items() if mask is not None}
    batch = Batch(
        {name: torch.zeros(*t.shape[:2], 1) for name, t in targets.items()}, targets, masks
    )
    return Episode(batch, batch)


def counted(task: Task, target: Tensor, mask: Tensor | None) -> int:
    """Example by example."""
    number = 0
    for index in range(target.shape[0] * target.shape[1]):
        at = divmod(index, target.shape[1])
        known = mask is None or bool(mask[at])
        if known and task.label_mask is not None:
            known = bool(task.label_mask(target[at][None])[0])
        number += known
    return number


@pytest.mark.parametrize("masked", [False, True])
def test_label_counts_are_those_of_single_examples(masked: bool) -> None:
    tasks = tuple(KINDS.values())
    algorithm = experiment().build()._replace(tasks=tasks)
    context = StepContext(algorithm, {}, Workers(), ExecutionConfig())
    # The second stack has other numbers of examples, and lacks the first task.
    first = {t.name: labels_of(t, 4, seed, masked) for seed, t in enumerate(tasks)}
    second = {t.name: labels_of(t, 7, seed, not masked) for seed, t in enumerate(tasks[1:])}
    batch = step_batch(context, (stack_of(first), stack_of(second)), 5)
    expected = [
        counted(task, *first[task.name])
        + (counted(task, *second[task.name]) if task.name in second else 0)
        for task in tasks
    ]
    assert batch.counts.tolist() == expected
    assert batch.tasks.tolist() == [i for i, number in enumerate(expected) if number]
    assert int(batch.num_episodes) == 2 * NUM_EPISODES and batch.step == 5


def test_a_task_without_labels_is_left_out() -> None:
    tasks = (KINDS["classification"], KINDS["squared"], KINDS["binary"])
    algorithm = experiment().build()._replace(tasks=tasks)
    labels = {t.name: labels_of(t, 4, seed, False) for seed, t in enumerate(tasks)}
    absent, _ = labels["squared"]
    labels["squared"] = absent, torch.zeros(absent.shape[:2], dtype=torch.bool)
    context = StepContext(algorithm, {}, Workers(), ExecutionConfig())
    batch = step_batch(context, stack_of(labels), 0)
    assert batch.counts.tolist() == [NUM_EPISODES * 4, 0, NUM_EPISODES * 4]
    assert batch.tasks.tolist() == [0, 2]
