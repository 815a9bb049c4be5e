"""How task losses or gradients are weighed; the union of specs is the registry."""

from typing import Annotated

from pydantic import Field

from raymtl.weighting.base import Jacobian, LossWeighting
from raymtl.weighting.pcgrad import PCGradSpec
from raymtl.weighting.static import StaticSpec
from raymtl.weighting.uncertainty import UncertaintySpec

WeightingSpec = Annotated[StaticSpec | UncertaintySpec | PCGradSpec, Field(discriminator="name")]

__all__ = ["Jacobian", "LossWeighting", "PCGradSpec", "StaticSpec", "UncertaintySpec", "WeightingSpec"]
