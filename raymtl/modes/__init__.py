"""Modes, by which the outer steps follow the joint loss. Their union is the registry."""

from typing import Annotated

from raymtl.modes.accumulation import Accumulation
from raymtl.modes.alternating import Alternating
from raymtl.modes.base import Mode
from raymtl.modes.hierarchical import Hierarchical
from raymtl.modes.online import Online
from raymtl.modes.weighted import Weighted
from raymtl.schema.components import Chosen

ModeSpec = Annotated[Accumulation | Alternating | Hierarchical | Online | Weighted, Chosen("mode")]

__all__ = ["Accumulation", "Alternating", "Hierarchical", "Mode", "ModeSpec", "Online", "Weighted"]
