"""How task losses or gradients are weighed; the union of specs is the registry."""

from typing import Annotated

from pydantic import Field

from raymtl.weighting.auto_lambda import AutoLambdaSpec
from raymtl.weighting.base import Jacobian, LossWeighting
from raymtl.weighting.db_mtl import DBMTLSpec
from raymtl.weighting.dwa import DWASpec
from raymtl.weighting.equal import EqualSpec
from raymtl.weighting.excess_mtl import ExcessMTLSpec
from raymtl.weighting.famo import FAMOSpec
from raymtl.weighting.gls import GLSSpec
from raymtl.weighting.gradnorm import GradNormSpec
from raymtl.weighting.imtl_l import IMTLLSpec
from raymtl.weighting.pcgrad import PCGradSpec
from raymtl.weighting.random import RandomSpec
from raymtl.weighting.static import StaticSpec
from raymtl.weighting.stch import STCHSpec
from raymtl.weighting.uncertainty import UncertaintySpec

WeightingSpec = Annotated[
    AutoLambdaSpec
    | DBMTLSpec
    | DWASpec
    | EqualSpec
    | ExcessMTLSpec
    | FAMOSpec
    | GLSSpec
    | GradNormSpec
    | IMTLLSpec
    | PCGradSpec
    | RandomSpec
    | StaticSpec
    | STCHSpec
    | UncertaintySpec,
    Field(discriminator="name"),
]

__all__ = [
    "AutoLambdaSpec",
    "DBMTLSpec",
    "DWASpec",
    "EqualSpec",
    "ExcessMTLSpec",
    "FAMOSpec",
    "GLSSpec",
    "GradNormSpec",
    "IMTLLSpec",
    "Jacobian",
    "LossWeighting",
    "PCGradSpec",
    "RandomSpec",
    "STCHSpec",
    "StaticSpec",
    "UncertaintySpec",
    "WeightingSpec",
]
