"""How tasks share parameters; the union of specs is the registry."""

from typing import Annotated

from pydantic import Field

from raymtl.sharing.base import SharingArchitecture
from raymtl.sharing.cross_stitch import CrossStitchSpec
from raymtl.sharing.hard import HardSpec
from raymtl.sharing.soft import SoftSpec

SharingSpec = Annotated[HardSpec | SoftSpec | CrossStitchSpec, Field(discriminator="name")]

__all__ = ["CrossStitchSpec", "HardSpec", "SharingArchitecture", "SharingSpec", "SoftSpec"]
