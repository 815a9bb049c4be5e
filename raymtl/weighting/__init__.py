"""Weightings of the task losses or gradients. The union of their specs is the registry."""

from typing import Annotated

from raymtl.schema.components import Chosen
from raymtl.weighting.aligned_mtl import AlignedMTLSpec
from raymtl.weighting.auto_lambda import AutoLambdaSpec
from raymtl.weighting.base import GradientWeighting, Jacobian, LossWeighting, Weighting
from raymtl.weighting.cagrad import CAGradSpec
from raymtl.weighting.config import ConFIGSpec
from raymtl.weighting.db_mtl import DBMTLSpec
from raymtl.weighting.dualproj import DualProjSpec
from raymtl.weighting.dwa import DWASpec
from raymtl.weighting.equal import EqualSpec
from raymtl.weighting.excess_mtl import ExcessMTLSpec
from raymtl.weighting.fairgrad import FairGradSpec
from raymtl.weighting.famo import FAMOSpec
from raymtl.weighting.gls import GLSSpec
from raymtl.weighting.graddrop import GradDropSpec
from raymtl.weighting.gradnorm import GradNormSpec
from raymtl.weighting.gradvac import GradVacSpec
from raymtl.weighting.imtl_g import IMTLGSpec
from raymtl.weighting.imtl_l import IMTLLSpec
from raymtl.weighting.mgda import MGDASpec
from raymtl.weighting.nash_mtl import NashMTLSpec
from raymtl.weighting.pcgrad import PCGradSpec
from raymtl.weighting.random import RandomSpec
from raymtl.weighting.sdmgrad import SDMGradSpec
from raymtl.weighting.static import StaticSpec
from raymtl.weighting.stch import STCHSpec
from raymtl.weighting.uncertainty import UncertaintySpec
from raymtl.weighting.upgrad import UPGradSpec

WeightingSpec = Annotated[
    AlignedMTLSpec
    | AutoLambdaSpec
    | CAGradSpec
    | ConFIGSpec
    | DBMTLSpec
    | DualProjSpec
    | DWASpec
    | EqualSpec
    | ExcessMTLSpec
    | FairGradSpec
    | FAMOSpec
    | GLSSpec
    | GradDropSpec
    | GradNormSpec
    | GradVacSpec
    | IMTLGSpec
    | IMTLLSpec
    | MGDASpec
    | NashMTLSpec
    | PCGradSpec
    | RandomSpec
    | SDMGradSpec
    | StaticSpec
    | STCHSpec
    | UncertaintySpec
    | UPGradSpec,
    Chosen("weighting"),
]

__all__ = [
    "AlignedMTLSpec",
    "AutoLambdaSpec",
    "CAGradSpec",
    "ConFIGSpec",
    "DBMTLSpec",
    "DWASpec",
    "DualProjSpec",
    "EqualSpec",
    "ExcessMTLSpec",
    "FAMOSpec",
    "FairGradSpec",
    "GLSSpec",
    "GradDropSpec",
    "GradNormSpec",
    "GradVacSpec",
    "GradientWeighting",
    "IMTLGSpec",
    "IMTLLSpec",
    "Jacobian",
    "LossWeighting",
    "MGDASpec",
    "NashMTLSpec",
    "PCGradSpec",
    "RandomSpec",
    "SDMGradSpec",
    "STCHSpec",
    "StaticSpec",
    "UPGradSpec",
    "UncertaintySpec",
    "Weighting",
    "WeightingSpec",
]
