"""Numbers of an input that stand for others: a model's front expands them before its encoders.

An input stays one row of numbers, as episodes, shards and workers carry it. A slot names some of
these numbers, and what the encoders read in their place.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

MOST_PLACES = 2**24
"""Below it float32 holds every whole number."""


@dataclass(frozen=True)
class Slot(ABC):
    """Numbers of an input vector, from `start` on, which the front turns into others.

    Slots are compared by their values: sources with equal slots can share an encoder.
    """

    is_sparse: ClassVar[bool] = False
    """Whether it becomes a vector of length 1, most of whose numbers are 0."""
    start: int

    @property
    @abstractmethod
    def size(self) -> int:
        """How many numbers of the input it takes."""

    @property
    @abstractmethod
    def num_features(self) -> int:
        """How many numbers the encoders read in their place."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The module [N, size] -> [N, num_features]. It is safe under vmap."""


@dataclass(frozen=True)
class SparseSlot(Slot):
    """A sparse vector as its terms: `num_terms` places, then the value at each of them.

    Places that occur twice add up, so that places with the value 0 fill what is not needed.
    """

    is_sparse: ClassVar[bool] = True
    num_terms: int
    num_places: int

    @property
    def size(self) -> int:
        return 2 * self.num_terms

    @property
    def num_features(self) -> int:
        return self.num_places

    def build(self) -> nn.Module:
        return Scatter(self.num_places)


class Scatter(nn.Module):
    """Places and values of terms [..., 2 M] -> the dense vector [..., num_places]."""

    def __init__(self, num_places: int) -> None:
        super().__init__()
        self.num_places = num_places

    def forward(self, terms: Tensor) -> Tensor:
        places, values = terms.chunk(2, -1)
        dense = values.new_zeros(*values.shape[:-1], self.num_places)
        return dense.scatter_add(-1, places.long(), values)


class Front(nn.Module):
    """Expands the slots of inputs [N, D] -> [N, num_features]; other numbers stay as they are."""

    def __init__(self, num_inputs: int, slots: Sequence[Slot]) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.parts = nn.ModuleList()
        end = 0
        for slot in (*slots, None):
            start = num_inputs
            if slot is not None:
                start = slot.start
            if start > end:
                self._add(start - end, nn.Identity())
            if slot is not None:
                self._add(slot.size, slot.build())
                end = slot.start + slot.size

    def _add(self, size: int, part: nn.Module) -> None:
        self.sizes.append(size)
        self.parts.append(part)

    def forward(self, inputs: Tensor) -> Tensor:
        pieces = inputs.split(self.sizes, -1)
        return torch.cat([part(own) for part, own in zip(self.parts, pieces, strict=True)], -1)


@torch.no_grad()
def balance(encoder: nn.Module, num_inputs: int, slots: Sequence[Slot]) -> None:
    """Gives the numbers beside sparse slots the initial weights of a layer without these slots.

    torch draws initial weights and biases from +-1 / sqrt(inputs). A few numbers beside the
    thousands of places of a text would start close to 0, and the texts would be learned by heart
    before the numbers are. Here a sparse slot counts as one input. The layer is the first one of
    torch's Linear that is as wide as the expanded input.
    """
    sparse: list[int] = []
    place, end = 0, 0
    for slot in slots:
        place += slot.start - end
        if slot.is_sparse:
            sparse += range(place, place + slot.num_features)
        place, end = place + slot.num_features, slot.start + slot.size
    width = place + num_inputs - end
    ordinary = torch.ones(width, dtype=torch.bool)
    ordinary[sparse] = False
    if not sparse or not ordinary.any():
        return
    num_counted = int(ordinary.sum()) + sum(slot.is_sparse for slot in slots)
    factor = math.sqrt(width / num_counted)
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear) and layer.in_features == width:
            layer.weight[:, ordinary] *= factor
            if layer.bias is not None:
                layer.bias.mul_(factor)
            return


def expanded_shape(input_shape: tuple[int, ...], slots: Sequence[Slot]) -> tuple[int, ...]:
    """The shape of one input as the encoders read it."""
    if not slots:
        return input_shape
    more = sum(slot.num_features - slot.size for slot in slots)
    return (math.prod(input_shape) + more,)


def front_of(input_shape: tuple[int, ...], slots: Sequence[Slot]) -> Front | None:
    """The front for inputs of this shape with these slots; None where there are no slots."""
    if not slots:
        return None
    return Front(math.prod(input_shape), slots)
