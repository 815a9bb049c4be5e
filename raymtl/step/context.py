"""What the functions of one outer step pass on to each other."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raymtl.encoders.dropout import KEY, dropouts, step_key
from raymtl.learners import BATCH_EMBEDDINGS
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, count_episodes, over_episodes, stacks
from raymtl.step.workers import Workers
from raymtl.tasks import Group, label_counts, task_groups
from raymtl.types import Batch, Episode, MetaBatch, Params


class StepContext(NamedTuple):
    """What every function of one outer step needs: the algorithm, its parameters, the workers and
    how the episodes are run.
    """

    algorithm: Algorithm
    params: Params
    workers: Workers
    execution: ExecutionConfig

    def of_step(self, step: int) -> "StepContext":
        """Returns the context with the counter by which the model drops in an outer step."""
        algorithm = self.algorithm
        if not dropouts(algorithm.model.prediction_modules()):
            return self
        device = next(iter(self.params.values())).device
        key = step_key(algorithm.seed, step, device)
        return self._replace(params={**self.params, KEY: key})

    def with_batch_embeddings(self, episodes: MetaBatch) -> "StepContext":
        """Returns the context with the embeddings of the tasks in all episodes of all workers.

        Learners that do not use them get the context as it is. The embeddings are constants: no
        gradient passes through them.
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
    """The episodes of this worker in one outer step, and totals over those of all workers."""

    episodes: Sequence[Episode]
    """This worker's, in stacks [E, ...] of one shape."""
    counts: Tensor
    """The number of labelled query examples of each task on all workers, [K]."""
    num_episodes: Tensor
    """The number of episodes of all workers, a scalar."""
    step: int
    """The number of the outer step."""
    tasks: Tensor
    """The indices of the tasks that have labels on any worker, in ascending order."""
    groups: tuple[Group, ...]
    """The tasks whose losses are computed together in all of this worker's stacks of episodes."""


def step_batch(context: StepContext, episodes: MetaBatch, step: int) -> StepBatch:
    """Counts the labels and episodes of a step and adds up the counts of all workers."""
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
