"""Gradient accumulation: the joint step, its gradient summed over micro-batches that are processed
one after the other.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from raymtl.modes.base import Mode


class Accumulation(Mode):
    """The joint step in less memory: each worker's episodes in `parts` passes, gradients summed
    before weighing.

    Equal to `weighted` up to rounding, with every weighting, since no layer has statistics over
    episodes. The losses must be known before they are weighed, which costs one more forward pass
    without a graph.

    Example: `mode: {name: accumulation, parts: 4}`
    """

    name: Literal["accumulation"] = "accumulation"
    helps: ClassVar[str] = "a step does not fit into memory"
    costs: ClassVar[str] = "1, and a forward pass; memory / `parts`"
    parts: Annotated[int, Field(ge=2)] = 2

    @property
    def micro_batches(self) -> int:
        return self.parts
