"""What the functions of one outer step pass on to each other."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raymtl.learners import BATCH_EMBEDDINGS
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, count_episodes, over_episodes, stacks
from raymtl.step.workers import Workers
from raymtl.tasks import label_counts
from raymtl.types import Episode, MetaBatch, Params


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

    @property
    def tasks(self) -> Tensor:
        """Which tasks have labels: indices, in ascending order."""
        return self.counts.nonzero().flatten()


def step_batch(context: StepContext, episodes: MetaBatch, step: int) -> StepBatch:
    """This worker's episodes beside the label counts and the number of episodes of all workers."""
    local = over_episodes(
        lambda episode: label_counts(context.algorithm.tasks, episode.query),
        episodes,
        ExecutionConfig(),
    ).sum(0)
    number = local.new_tensor([count_episodes(stacks(episodes))])
    totals = context.workers.sum(torch.cat([local, number]))
    return StepBatch(stacks(episodes), totals[:-1], totals[-1], step)
