"""What every optimisation mode decides: which tasks count in a step, and which parameters it moves."""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import ClassVar

from raymtl.types import Spec


class Mode(Spec, ABC):
    """Every decision is a function of the step (and seed), so that all workers and a resumed run
    take the same.
    """

    helps: ClassVar[str]
    """When one would choose the method, half a sentence for docs/methods.md."""

    costs: ClassVar[str]
    """What a step costs against a joint one."""

    @property
    def micro_batches(self) -> int:
        """Into how many passes over its episodes a worker divides a step."""
        return 1

    @property
    def divides_gradient(self) -> bool:
        """Whether the mode takes the gradient of the query losses apart, which a learner without
        one cannot do.
        """
        return True

    @property
    def one_task_a_step(self) -> bool:
        """Whether only one task's loss counts in a step, so that there are no gradients to weigh."""
        return False

    @property
    def anchor_strength(self) -> float:
        """delta in delta |theta - theta'|^2, which draws the model to what it was at the last step
        that `anchors`.
        """
        return 0.0

    def check(self, tasks: Sequence[str]) -> tuple[str, str] | None:
        """What cannot be on these tasks: the key below `mode.` and a sentence; None where all is
        well.
        """
        return None

    def arrived(self, step: int, tasks: Sequence[str]) -> frozenset[str]:
        """The tasks that have labels at all by this step, of support and of query."""
        return frozenset(tasks)

    def counted(self, step: int, seed: int, sizes: Mapping[str, int]) -> frozenset[str]:
        """The tasks whose query losses count in this step; `sizes` are the labelled training
        examples of each.
        """
        return self.arrived(step, tuple(sizes))

    def comparisons(self, tasks: Sequence[str], seed: int) -> list[dict[str, float]]:
        """Fixed weights by task, each of which a training of its own is to be made with for the
        regret; often none.
        """
        return []

    def moves(self, step: int, parameter: str) -> bool:
        """Whether this step moves the parameter of this name, prefix included."""
        return True

    def anchors(self, step: int) -> bool:
        """Whether theta' becomes what the model is before this step."""
        return False
