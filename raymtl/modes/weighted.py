"""One joint step of all weighted losses: theta <- theta - lr * sum_t w_t g_t."""

from typing import ClassVar, Literal

from raymtl.modes.base import Mode


class Weighted(Mode):
    """One joint step of all weighted losses.

    Example: `mode: {name: weighted}`
    """

    name: Literal["weighted"] = "weighted"
    helps: ClassVar[str] = "the default"
    costs: ClassVar[str] = "1"

    @property
    def divides_gradient(self) -> bool:
        return False
