"""Architectures by which tasks share parameters. The union of their specs is the registry."""

from typing import Annotated

from raymtl.schema.components import Chosen
from raymtl.sharing.adversarial import AdversarialSpec
from raymtl.sharing.attention import AttentionSpec
from raymtl.sharing.base import SharingArchitecture
from raymtl.sharing.branching import BranchingSpec
from raymtl.sharing.cgc import CGCSpec
from raymtl.sharing.cross_stitch import CrossStitchSpec
from raymtl.sharing.dselect_k import DSelectKSpec
from raymtl.sharing.hard import HardSpec
from raymtl.sharing.hierarchical import HierarchicalSpec
from raymtl.sharing.lora import LoRASpec
from raymtl.sharing.low_rank import LowRankSpec
from raymtl.sharing.mmoe import MMoESpec
from raymtl.sharing.mtan import MTANSpec
from raymtl.sharing.ple import PLESpec
from raymtl.sharing.relation import RelationSpec
from raymtl.sharing.sluice import SluiceSpec
from raymtl.sharing.soft import SoftSpec

SharingSpec = Annotated[
    AdversarialSpec
    | AttentionSpec
    | BranchingSpec
    | CGCSpec
    | CrossStitchSpec
    | DSelectKSpec
    | HardSpec
    | HierarchicalSpec
    | LoRASpec
    | LowRankSpec
    | MMoESpec
    | MTANSpec
    | PLESpec
    | RelationSpec
    | SluiceSpec
    | SoftSpec,
    Chosen("sharing"),
]

__all__ = [
    "AdversarialSpec",
    "AttentionSpec",
    "BranchingSpec",
    "CGCSpec",
    "CrossStitchSpec",
    "DSelectKSpec",
    "HardSpec",
    "HierarchicalSpec",
    "LoRASpec",
    "LowRankSpec",
    "MMoESpec",
    "MTANSpec",
    "PLESpec",
    "RelationSpec",
    "SharingArchitecture",
    "SharingSpec",
    "SluiceSpec",
    "SoftSpec",
]
