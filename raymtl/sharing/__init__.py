"""How tasks share parameters; the union of specs is the registry."""

from typing import Annotated

from pydantic import Field

from raymtl.sharing.base import SharingArchitecture
from raymtl.sharing.cgc import CGCSpec
from raymtl.sharing.cross_stitch import CrossStitchSpec
from raymtl.sharing.hard import HardSpec
from raymtl.sharing.mmoe import MMoESpec
from raymtl.sharing.ple import PLESpec
from raymtl.sharing.soft import SoftSpec

SharingSpec = Annotated[
    CGCSpec | CrossStitchSpec | HardSpec | MMoESpec | PLESpec | SoftSpec, Field(discriminator="name")
]

__all__ = [
    "CGCSpec",
    "CrossStitchSpec",
    "HardSpec",
    "MMoESpec",
    "PLESpec",
    "SharingArchitecture",
    "SharingSpec",
    "SoftSpec",
]
