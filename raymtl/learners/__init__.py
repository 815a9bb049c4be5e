"""How a support set becomes a predictor; the union of learners is the registry."""

from typing import Annotated

from pydantic import Field

from raymtl.learners.base import MetaLearner, Objective
from raymtl.learners.maml import MAML
from raymtl.learners.proto_maml import ProtoMAML
from raymtl.learners.protonet import ProtoNet
from raymtl.learners.reptile import Reptile

LearnerSpec = Annotated[MAML | Reptile | ProtoNet | ProtoMAML, Field(discriminator="name")]

__all__ = ["MAML", "LearnerSpec", "MetaLearner", "Objective", "ProtoMAML", "ProtoNet", "Reptile"]
