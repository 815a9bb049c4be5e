"""What the functions of one outer step pass on to each other."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raymtl.learners import BATCH_EMBEDDINGS
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, count_episodes, over_episodes, stacks
from raymtl.step.workers import Workers
from raymtl.tasks import Group, label_counts, task_groups
from raymtl.types import Batch, Episode, MetaBatch, Params


class StepContext(NamedTuple):
    """What is learned, where it stands, on which of the workers, and how episodes are run."""

    algorithm: Algorithm
    params: Params
    workers: Workers
    execution: ExecutionConfig

    def with_batch_embeddings(self, episodes: MetaBatch) -> "StepContext":
        """The context with the embeddings of all tasks of all workers, where the learner uses them.

        They are constants: no gradient follows them.
        """
        algorithm, params = self.algorithm, self.params
        if not algorithm.learner.uses_batch_context:
            return self
        with torch.no_grad():
            embeddings = over_episodes(
                lambda episode: algorithm.learner.embed(algorithm.model, params, episode.support),
                episodes,
                self.execution,
            )
            joined = self.workers.join(embeddings)
        return self._replace(params={**params, BATCH_EMBEDDINGS: joined})


class StepBatch(NamedTuple):
    """This worker's episodes of one step, and the totals over the episodes of all workers."""

    episodes: Sequence[Episode]
    counts: Tensor
    """Labelled query examples of each task, [K]."""
    num_episodes: Tensor
    """A scalar."""
    step: int
    """The outer step."""
    tasks: Tensor
    """Which tasks have labels: indices, in ascending order."""
    groups: tuple[Group, ...]
    """The tasks whose losses are computed together in all of this worker's stacks of episodes."""


def step_batch(context: StepContext, episodes: MetaBatch, step: int) -> StepBatch:
    """This worker's episodes beside the label counts and the number of episodes of all workers."""
    own = stacks(episodes)
    counts = [label_counts(context.algorithm.tasks, _joined(stack.query)) for stack in own]
    local = torch.stack(counts).sum(0)
    number = local.new_tensor([count_episodes(own)])
    totals = context.workers.sum(torch.cat([local, number]))
    labelled = totals[:-1]
    groups = task_groups(context.algorithm.tasks, [stack.query for stack in own])
    return StepBatch(own, labelled, totals[-1], step, labelled.nonzero().flatten(), groups)


def _joined(queries: Batch) -> Batch:
    """The labels of all episodes of a stack as those of one batch, without the inputs."""
    targets = {name: target.flatten(0, 1) for name, target in queries.targets.items()}
    masks = {name: mask.flatten(0, 1) for name, mask in queries.masks.items()}
    return Batch({}, targets, masks)
