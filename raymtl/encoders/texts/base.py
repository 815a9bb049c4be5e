"""A model that makes vectors of texts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

Advance = Callable[[int], None]
"""Is told how many texts have been encoded since it was last called."""


class TextModel(ABC):
    """A pre-trained model. The vector of a text does not depend on the texts beside it."""

    size: int
    """The length of a vector."""
    max_tokens: int | None
    """Longer texts are cut off; None: texts of any length are read."""

    @abstractmethod
    def vectors(self, texts: Sequence[str], advance: Advance) -> np.ndarray:
        """The vectors of texts [N, size] float32."""

    @abstractmethod
    def num_long(self, texts: Sequence[str]) -> int:
        """How many of the texts have more than `max_tokens` tokens."""
