"""Learners, which turn a support set into a predictor. Their union is the registry."""

from typing import Annotated

from raymtl.learners.anil import ANIL
from raymtl.learners.base import BATCH_EMBEDDINGS, MetaLearner, Objective
from raymtl.learners.boil import BOIL
from raymtl.learners.cavia import CAVIA
from raymtl.learners.cnp import CNP
from raymtl.learners.hyper import Hyper
from raymtl.learners.imaml import IMAML
from raymtl.learners.maml import MAML
from raymtl.learners.maml_pp import MAMLPlusPlus
from raymtl.learners.matching import Matching
from raymtl.learners.meta_sgd import MetaSGD
from raymtl.learners.metaopt import MetaOpt
from raymtl.learners.plain import Plain
from raymtl.learners.proto_maml import ProtoMAML
from raymtl.learners.protonet import ProtoNet
from raymtl.learners.r2d2 import R2D2
from raymtl.learners.reptile import Reptile
from raymtl.learners.t_net import TNet
from raymtl.learners.umtl import UMTL
from raymtl.learners.warp_grad import WarpGrad
from raymtl.schema.components import Chosen

LearnerSpec = Annotated[
    ANIL
    | BOIL
    | CAVIA
    | CNP
    | Hyper
    | IMAML
    | MAML
    | MAMLPlusPlus
    | Matching
    | MetaOpt
    | MetaSGD
    | Plain
    | ProtoMAML
    | ProtoNet
    | R2D2
    | Reptile
    | TNet
    | UMTL
    | WarpGrad,
    Chosen("learner"),
]

__all__ = [
    "ANIL",
    "BATCH_EMBEDDINGS",
    "BOIL",
    "CAVIA",
    "CNP",
    "IMAML",
    "MAML",
    "R2D2",
    "UMTL",
    "Hyper",
    "LearnerSpec",
    "MAMLPlusPlus",
    "Matching",
    "MetaLearner",
    "MetaOpt",
    "MetaSGD",
    "Objective",
    "Plain",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "TNet",
    "WarpGrad",
]
