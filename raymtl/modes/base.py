"""What every optimisation mode decides: which tasks count in a step, which parameters it moves."""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import ClassVar

from raymtl.types import Spec


class Mode(Spec, ABC):
    """How the outer steps follow the losses of the tasks.

    Every decision is a function of the step and the seed, so that all workers and a resumed run
    decide alike.
    """

    section: ClassVar[str] = "mode"
    helps: ClassVar[str]
    """When one would choose the method, half a sentence for docs/methods.md."""

    costs: ClassVar[str]
    """What a step costs against a joint one."""

    @property
    def micro_batches(self) -> int:
        """Into how many micro-batches a worker divides its episodes of a step."""
        return 1

    @property
    def divides_gradient(self) -> bool:
        """Whether the mode needs the gradients of the query losses one by one.

        A learner without a query gradient cannot provide them.
        """
        return True

    @property
    def one_task_a_step(self) -> bool:
        """Whether only one task's loss counts in a step, which leaves no gradients to weigh."""
        return False

    @property
    def anchor_strength(self) -> float:
        """delta in delta |theta - theta'|^2, with theta' the model at the last anchor step."""
        return 0.0

    def check(self, tasks: Sequence[str]) -> tuple[str, str] | None:
        """Why these hyperparameters do not fit the tasks; None where they do.

        The first string is the key below `mode.`, the second continues the sentence after it.
        """
        return None

    def support_tasks(self, step: int, tasks: Sequence[str]) -> frozenset[str]:
        """The tasks whose support labels the inner loop sees in this step."""
        return frozenset(tasks)

    def query_tasks(self, step: int, seed: int, sizes: Mapping[str, int]) -> frozenset[str]:
        """The tasks whose query losses count in this step.

        `sizes` are the labelled training examples of each task.
        """
        return self.support_tasks(step, tuple(sizes))

    def comparisons(self, tasks: Sequence[str], seed: int) -> list[dict[str, float]]:
        """Fixed weights by task, each for a training that the regret compares with."""
        return []

    def moves(self, step: int, parameter: str) -> bool:
        """Whether this step moves the parameter of this name, prefix included."""
        return True

    def is_anchor_step(self, step: int) -> bool:
        """Whether theta' becomes what the model is before this step."""
        return False
