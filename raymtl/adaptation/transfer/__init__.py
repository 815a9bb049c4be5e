"""Knowledge carried to a new task: by features, by a model to go on from, by targets."""

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import Field, TypeAdapter

from raymtl.adaptation.transfer.base import Learned, Result, Transfer
from raymtl.adaptation.transfer.descent import Anchor, Course, Optimiser, descend
from raymtl.adaptation.transfer.feature import FeatureTransfer
from raymtl.adaptation.transfer.losses import Absolute, CrossEntropy, Huber, Squared
from raymtl.adaptation.transfer.model import ModelTransfer
from raymtl.adaptation.transfer.network import Network, Teacher, Trunk, named
from raymtl.adaptation.transfer.parse import parsed
from raymtl.adaptation.transfer.split import split
from raymtl.adaptation.transfer.target import TargetTransfer, distillation
from raymtl.adaptation.transfer.task import NEW_TASK_KINDS, Examples, NewTask
from raymtl.types import UserError

TransferSpec = Annotated[
    FeatureTransfer | ModelTransfer | TargetTransfer, Field(discriminator="name")
]

WAYS: dict[str, type[Transfer]] = {
    way.model_fields["name"].default: way for way in get_args(get_args(TransferSpec)[0])
}


def parse_transfer(way: str, values: Mapping[str, Any]) -> Transfer:
    """The way of this name with these dotted values. Raises UserError that begins with the dotted
    key.
    """
    if way not in WAYS:
        raise UserError(f"--transfer: expected one of {', '.join(WAYS)}, got '{way}'.")
    return parsed(WAYS[way], values)


def load_transfer(tree: Any) -> Transfer:
    """The way that `model_dump` gave. Raises pydantic's ValidationError."""
    return TypeAdapter[Transfer](TransferSpec).validate_python(tree)


__all__ = [
    "NEW_TASK_KINDS",
    "WAYS",
    "Absolute",
    "Anchor",
    "Course",
    "CrossEntropy",
    "Examples",
    "FeatureTransfer",
    "Huber",
    "Learned",
    "ModelTransfer",
    "Network",
    "NewTask",
    "Optimiser",
    "Result",
    "Squared",
    "TargetTransfer",
    "Teacher",
    "Transfer",
    "TransferSpec",
    "Trunk",
    "descend",
    "distillation",
    "load_transfer",
    "named",
    "parse_transfer",
    "split",
]
