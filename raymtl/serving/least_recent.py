"""What is kept within a number of bytes."""

from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")


class LeastRecent(Generic[V]):
    """Values by name; where they take too much, those that were not used for the longest time go.

    The last one stays even if it is larger than all may be.
    """

    def __init__(self, most_bytes: float) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._kept: OrderedDict[str, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    def get(self, name: str) -> V | None:
        """The value, which counts as used now."""
        if name not in self._kept:
            return None
        self._kept.move_to_end(name)
        return self._kept[name][0]

    def put(self, name: str, value: V, size: int) -> None:
        """Keeps a value of `size` bytes in place of one with the same name."""
        self.drop(name)
        self._kept[name] = (value, size)
        self.bytes += size
        while self.bytes > self.most_bytes and len(self._kept) > 1:
            self.drop(next(iter(self._kept)))

    def drop(self, name: str) -> bool:
        """Forgets it; returns whether it was there."""
        if name not in self._kept:
            return False
        self.bytes -= self._kept.pop(name)[1]
        return True
