"""What is trained on the features of a frozen network, or of its first stages."""

from torch import nn

from raymtl.encoders.base import Encoder
from raymtl.encoders.mlp import MLPSpec
from raymtl.encoders.pretrained.network import PretrainedEncoder
from raymtl.types import UserError


def build_on_features(
    trunk: MLPSpec | None, feature_shape: tuple[int, ...], inner_steps: int
) -> Encoder:
    """The encoder of features [N, *feature_shape]; without a trunk it gives them as they are."""
    if trunk is not None:
        return trunk.build(feature_shape, inner_steps)
    encoder = Encoder([nn.Identity()], feature_shape, [feature_shape])
    encoder.has_stages = False
    return encoder


class LastStages(Encoder):
    """The stages of a network behind its first `number`, whose features they read."""

    def __init__(self, network: PretrainedEncoder, number: int) -> None:
        _check_number(network, number)
        shapes = network.shapes[number:]
        super().__init__(list(network.stages)[number:], shapes[0], shapes[1:])
        self._whole = (network,)  # in a tuple it is no submodule

    @property
    def whole(self) -> PretrainedEncoder:
        """The network, which shares the values of its stages with this encoder."""
        return self._whole[0]

    @property
    def is_pretrained(self) -> bool:
        return self.whole.is_pretrained


def first_stages(network: PretrainedEncoder, number: int) -> Encoder:
    """The first stages of a network as an encoder of pictures; 0 stands for all of them."""
    if not number:
        return network
    _check_number(network, number)
    shapes = network.shapes[: number + 1]
    return Encoder(list(network.stages)[:number], shapes[0], shapes[1:])


def _check_number(network: PretrainedEncoder, number: int) -> None:
    most = len(network.stages) - 1
    if number > most:
        raise UserError(
            f"encoder.frozen_stages: expected at most {most} beside encoder.frozen: true, so that "
            f"a stage of the network is left to train, got {number}. Lower it, or leave it away to "
            "train heads or encoder.trunk on the features of all stages."
        )


def unresolved() -> UserError:
    """The error about a frozen network that is used before its weights were read."""
    return UserError(
        "encoder.frozen: expected a network whose weights have been read, got its configuration "
        "alone. Call the Experiment's resolve(); raymtl.load does."
    )
