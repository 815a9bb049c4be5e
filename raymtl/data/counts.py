"""A number of examples or classes in a configuration: one, or a range to draw it from."""

from functools import partial
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from raymtl.data.draws import Draws


def _numbers(count: int | tuple[int, int], least: int) -> int | tuple[int, int]:
    low, high = (count, count) if isinstance(count, int) else count
    if not least <= low <= high:
        raise ValueError(f"expected a number of at least {least}, or [least, most] of such")
    return count


Count = Annotated[int | tuple[int, int], AfterValidator(partial(_numbers, least=1))]
"""A number, or [least, most] of which every episode draws its own, both included."""


Ways = Annotated[int | tuple[int, int], AfterValidator(partial(_numbers, least=2))]
"""The same of classes, of which there are two at least."""


def most(count: int | tuple[int, int]) -> int:
    """The largest number that can be drawn."""
    if isinstance(count, int):
        return count
    return count[1]


def usual(count: int | tuple[int, int]) -> int:
    """The number itself, or the mean of those that can be drawn, rounded down."""
    if isinstance(count, int):
        return count
    return sum(count) // 2


def drawn(count: int | tuple[int, int], draws: Draws) -> int | np.ndarray:
    """The number itself, or for each episode one of those between the bounds, with equal odds."""
    if isinstance(count, int):
        return count
    return count[0] + draws.integers(count[1] + 1 - count[0])
