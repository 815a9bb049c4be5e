"""What a test knows about a value and a type checker does not, asserted when the test runs."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from raymtl.types import Batch, Episode, MetaBatch

T = TypeVar("T")


def checked(value: object, kind: type[T]) -> T:
    """The value, which is of this class."""
    assert isinstance(value, kind), f"expected {kind.__name__}, got {value!r}"
    return value


def present(value: T | None) -> T:
    """The value, which is not None."""
    assert value is not None
    return value


def shared_inputs(batch: Batch) -> Tensor:
    """The inputs [N, ...] of a batch whose tasks share them."""
    return checked(batch.inputs, Tensor)


def own_inputs(batch: Batch, task: str) -> Tensor:
    """The inputs [N_t, ...] of a task, of a batch whose tasks have their own."""
    assert isinstance(batch.inputs, Mapping)
    return batch.inputs[task]


def several_stacks(episodes: MetaBatch) -> Sequence[Episode]:
    """A meta-batch as the stacks that it consists of."""
    assert not isinstance(episodes, Episode)
    return episodes


def one_stack(episodes: MetaBatch) -> Episode:
    """A meta-batch whose episodes are alike."""
    return checked(episodes, Episode)
