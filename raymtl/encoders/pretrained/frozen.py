"""What is trained on the features of a frozen network."""

from torch import nn

from raymtl.encoders.base import Encoder
from raymtl.encoders.mlp import MLPSpec
from raymtl.types import UserError


def build_on_features(trunk: MLPSpec | None, num_features: int, inner_steps: int) -> Encoder:
    """The encoder of features [N, num_features]; without a trunk it gives them as they are."""
    shape = (num_features,)
    if trunk is not None:
        return trunk.build(shape, inner_steps)
    encoder = Encoder([nn.Identity()], shape, [shape])
    encoder.has_stages = False
    return encoder


def unresolved() -> UserError:
    """The error about a frozen network that is used before its weights were read."""
    return UserError(
        "encoder.frozen: expected a network whose weights have been read, got its configuration "
        "alone. Call the Experiment's resolve(); raymtl.load does."
    )
