"""The private names of timm that the package uses, tested with timm 1.0.

`token_embedding` is a vision transformer's way from patches to tokens, with the class token and the
embedding of places. Without it a vision transformer is an encoder of one stage.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def token_embedding(network: type) -> Callable[[Any, Tensor], Tensor] | None:
    """The method of a vision transformer's class that embeds patches; None in another version."""
    method: Callable[[Any, Tensor], Tensor] | None = getattr(network, "_pos_embed", None)
    return method
