"""The frozen network of an encoder: pictures -> features, whichever pictures are beside them.

How many pictures pass together decides which kernels torch takes, and so the last bits of the
result. So they always pass in batches of one size, the last of which is filled up.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.encoders import Encoder, PretrainedSpec, freeze
from raymtl.encoders.pretrained.frozen import first_stages
from raymtl.storage import formats
from raymtl.types import Batch, UserError

BATCH = 16
"""Pictures that pass together on a CPU."""
BATCH_ON_GPU = 256
PARENTS = 3
"""How many folders above a model folder the run folder is, at most."""


def frozen_encoder(experiment: Experiment) -> PretrainedSpec | None:
    """The encoder of an experiment if its network is frozen."""
    encoder = experiment.encoder
    if isinstance(encoder, PretrainedSpec) and encoder.frozen:
        return encoder
    return None


def read_shape(experiment: Experiment) -> tuple[int, ...]:
    """The shape of one input as the model reads it: of a picture, or of its features."""
    encoder = frozen_encoder(experiment)
    if encoder is None:
        return tuple(experiment.data.input_shape)
    return encoder.feature_shape


class FrozenNetwork(torch.nn.Module):
    """A network without parameters, [N, channels, height, width] -> [N, *feature_shape]."""

    def __init__(self, network: Encoder) -> None:
        super().__init__()
        freeze(network)
        self.network = network.to(memory_format=torch.channels_last)
        self.feature_shape = network.shapes[-1]

    @property
    def _like(self) -> Tensor:
        return next(value for value in self.buffers() if value.is_floating_point())

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Of pictures in bytes, or from 0 to 1; in the precision of the network."""
        size = BATCH
        if self._like.is_cuda:
            size = BATCH_ON_GPU
        features = [self._of_batch(batch, size) for batch in pictures.split(size)]
        if not features:
            return self._like.new_zeros(0, *self.feature_shape)
        return torch.cat(features)

    def _of_batch(self, pictures: Tensor, size: int) -> Tensor:
        number = len(pictures)
        inputs = pictures.to(self._like)
        if pictures.dtype == torch.uint8:
            inputs = inputs.div_(255)
        filled = inputs.new_zeros(size, *inputs.shape[1:])
        filled[:number] = inputs
        flat: Tensor = self.network(filled.contiguous(memory_format=torch.channels_last))
        return flat[:number].reshape(number, *self.feature_shape)

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Features [N, F] float32 of pictures in bytes. Raises UserError if some are infinite."""
        # A copy, since torch warns of arrays that cannot be written, such as those of Ray.
        features = self(torch.from_numpy(np.array(rows)))
        if not features.isfinite().all():
            raise UserError(
                "encoder.weights: expected a network whose features are finite, got infinite ones "
                "or no numbers. Take other weights, or another encoder.size."
            )
        content: np.ndarray = features.flatten(1).float().cpu().numpy()
        return content


def read_by(network: FrozenNetwork | None, batch: Batch) -> Batch:
    """The examples with their features in the place of pictures; as they are without a network."""
    if network is None:
        return batch
    if isinstance(batch.inputs, Tensor):
        return batch._replace(inputs=network(batch.inputs))
    return batch._replace(inputs={name: network(own) for name, own in batch.inputs.items()})


def kept_weights(encoder: PretrainedSpec) -> str:
    """The name of the file in a run folder that holds the values of the frozen network."""
    assert encoder.found is not None
    return f"frozen-{encoder.found.sha256[:16]}.safetensors"


def load_network(experiment: Experiment, folder: Path | None = None) -> FrozenNetwork | None:
    """The frozen network of an experiment; None if it has none.

    Its values are those that the run keeps, if `folder` is in one, or else those of
    `encoder.weights`. Raises UserError where neither can be read.
    """
    encoder = frozen_encoder(experiment)
    if encoder is None:
        return None
    with torch.random.fork_rng(devices=[]):
        whole = encoder.network.build_network(experiment.data.input_shape)
    network = first_stages(whole, encoder.frozen_stages)
    kept = _find_kept(encoder, folder)
    if kept is not None:
        network.load_state_dict(formats.load_params(kept, network.state_dict()))
        return FrozenNetwork(network)
    try:
        encoder.network.initialise(whole)
    except UserError as error:
        if folder is None:
            raise
        raise UserError(
            f"{folder}: expected {kept_weights(encoder)} in it or in its run folder, got neither, "
            f"and the weights are gone ({error}) Copy the file from the run folder."
        ) from None
    return FrozenNetwork(network)


def _find_kept(encoder: PretrainedSpec, folder: Path | None) -> Path | None:
    if folder is None:
        return None
    name = kept_weights(encoder)
    above = [folder, *folder.absolute().parents[:PARENTS]]
    return next((place / name for place in above if (place / name).is_file()), None)


def keep_weights(experiment: Experiment, run: Path, publish: formats.Publish) -> None:
    """Writes the values of the frozen network into a run folder, unless they are there."""
    encoder = frozen_encoder(experiment)
    if encoder is None or (run / kept_weights(encoder)).exists():
        return
    network = load_network(experiment)
    assert network is not None
    formats.save_params(run / kept_weights(encoder), network.network.state_dict(), publish)
