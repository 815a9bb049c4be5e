"""How a support set becomes a predictor; the union of learners is the registry."""

from typing import Annotated

from pydantic import Field

from raymtl.learners.base import MetaLearner, Objective
from raymtl.learners.maml import MAML
from raymtl.learners.protonet import ProtoNet
from raymtl.learners.reptile import Reptile

LearnerSpec = Annotated[MAML | Reptile | ProtoNet, Field(discriminator="name")]

__all__ = ["MAML", "LearnerSpec", "MetaLearner", "Objective", "ProtoNet", "Reptile"]
