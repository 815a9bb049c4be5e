"""What goes into a step of the training, and what is recorded of it."""

import math
from typing import NamedTuple

from raymtl.step.algorithm import Algorithm
from raymtl.step.meta_gradient import MetaGradient
from raymtl.types import MetaBatch


class StepInput(NamedTuple):
    """What the loop knows about a step before the step is made."""

    step: int
    """Counted over all stages."""
    episodes: MetaBatch
    """Those of this worker."""
    wait_s: float
    """How long this worker waited for the episodes."""
    ask_preempted: bool
    """Whether all workers ask after this step if one of them is about to be taken away."""
    read_bytes: float
    """Of streamed files, by all workers and builders, since the step before."""
    builder_cpu_s: float
    """Processor time of all builders for the episodes."""
    num_builders: int
    """Those that built the episodes; 0 where the workers did."""

    def columns(self, seconds: float, *, is_streamed: bool) -> dict[str, float]:
        """The record of what the episodes cost, for a step that took so long."""
        columns = {"data_wait_pct": 100 * self.wait_s / seconds}
        if is_streamed:
            columns["read_mb"] = self.read_bytes / 1e6
        if self.num_builders:
            columns["builder_cpu_pct"] = 100 * self.builder_cpu_s / seconds / self.num_builders
        return columns


class StepResult(NamedTuple):
    """What a step leaves for its record."""

    meta: MetaGradient
    grad_norm: float
    learning_rate: float


def columns_by_task(algorithm: Algorithm, meta: MetaGradient) -> dict[str, float | None]:
    """Columns `loss.TASK`, None where the task had no label, and `weight.TASK`."""
    columns: dict[str, float | None] = {}
    names = [task.name for task in algorithm.tasks]
    for name, loss in zip(names, meta.losses.tolist(), strict=True):
        columns[f"loss.{name}"] = None if math.isnan(loss) else loss
    for name, weight in zip(names, meta.weights.tolist(), strict=True):
        columns[f"weight.{name}"] = weight
    return columns
