"""What the specs of timm's and torchvision's networks have in common."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from raymtl.encoders.base import Encoder, EncoderSpecBase, Stage, freeze
from raymtl.encoders.pictures import picture_shape
from raymtl.encoders.pretrained import frozen_norm, names, weights
from raymtl.encoders.pretrained.parts import Preprocess, make_pure
from raymtl.encoders.pretrained.stages import Recipe, divide, is_whole
from raymtl.types import Spec, UserError


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


class Found(Spec):
    """What `encoder.weights` was when it was read, and for which network."""

    weights: str
    network: str
    """`encoder.name` and `encoder.model`."""
    sha256: str
    """Of the file."""


class PretrainedSpec(EncoderSpecBase):
    """The hyperparameters that both have."""

    model: str = "resnet18"
    weights: str = weights.NONE
    """A file of weights (.safetensors, .pth), `hub:NAME`, or none: the network is initialised at
    random.
    """
    size: PositiveInt | None = None
    """To how many pixels a side pictures are resized; None: they stay as they are."""
    pooled: bool = True
    """Whether the features of all places are averaged; tasks with an output for every pixel need
    maps.
    """
    batch_norm: Literal["auto", "frozen", "support"] = "auto"
    """By which statistics batch norms normalise: `frozen` are those of the pre-training, which are
    constants; `support` are those of the support set. `auto` is frozen with weights and support
    without.
    """
    frozen_stages: NonNegativeInt = 0
    """How many stages, from the input on, keep their values; these are no parameters."""
    lr_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The factor of the learning rate from each stage to the one before it: the last stage has
    lr * lr_scale, the one before it lr * lr_scale^2. Heads have lr.
    """
    found: Found | None = None
    """What a run found in the file; not to be set."""

    @model_validator(mode="after")
    def _forget_stale(self) -> Self:
        found = self.found
        if found and (found.weights, found.network) != (self.weights, self._network_name):
            # The object is frozen for others; here it is still being made.
            self.__dict__["found"] = None
        return self

    @property
    def _network_name(self) -> str:
        return f"{getattr(self, 'name', '')}/{self.model}"

    @abstractmethod
    def _network(self, size: tuple[int, int]) -> Network:
        """The network for pictures of this size. Raises UserError where there is none."""

    @abstractmethod
    def _fetch(self, name: str) -> Path:
        """The file of `hub:NAME`; raises any Exception where it cannot be had."""

    @property
    def weights_source(self) -> str:
        return self.weights

    @property
    def is_resolved(self) -> bool:
        return self.weights == weights.NONE or self.found is not None

    def resolve(self, input_shape: tuple[int, ...]) -> Self:
        if self.is_resolved:
            return self
        source = weights.absolute(self.weights)
        read = weights.read(source, self._fetch)
        with torch.device("meta"):
            encoder = self.build(input_shape)
        encoder.check_fit(source, read.entries)
        found = Found(weights=source, network=self._network_name, sha256=read.sha256)
        return self.model_copy(update={"weights": source, "found": found})

    def initialise(self, encoder: Encoder) -> None:
        if self.weights == weights.NONE:
            return
        assert isinstance(encoder, PretrainedEncoder)
        if self.found is None:
            read = weights.read(weights.absolute(self.weights), self._fetch)
        else:
            read = weights.read_same(self.weights, self.found.sha256, self._fetch)
        encoder.take(self.weights, read.entries)

    def build(self, input_shape: tuple[int, ...], inner_steps: int = 0) -> PretrainedEncoder:
        """For pictures [N, channels, height, width] of 1 or 3 channels, in [0, 1].

        Raises UserError for other inputs, for a model that is not known, and for what it cannot do.
        """
        channels, height, width = picture_shape(getattr(self, "name", ""), input_shape, at_least=1)
        if channels not in (1, 3):
            raise UserError(
                f"encoder.model: {self.model} takes pictures of 1 or 3 channels, got inputs of "
                f"shape {input_shape}. Choose another encoder.name, such as resnet18."
            )
        if self.size is not None:
            height = width = self.size
        network = self._network((height, width))
        network = network._replace(entries=tuple(network.module.state_dict()))
        make_pure(network.module)
        if frozen_norm.has_batch_norms(network.module):
            frozen_norm.convert_batch_norms(network.module, self._batch_norm_kind(), self.model)
        stages, has_stages = self._stages(network)
        for before_last, stage in enumerate(reversed(stages)):
            stage.lr_scale = self.lr_scale ** (before_last + 1)
        encoder = self._applied(network, stages, input_shape)
        self._freeze(encoder.stages)
        encoder.has_stages = has_stages
        encoder.starts_pretrained = self.weights != weights.NONE
        return encoder

    def _batch_norm_kind(self) -> frozen_norm.BatchNormKind:
        if self.batch_norm == "support":
            return "support"
        if self.weights != weights.NONE:
            return "frozen"
        if self.batch_norm == "auto":
            return "support"
        raise UserError(
            "encoder.batch_norm: frozen takes the statistics of pre-trained weights, got "
            "encoder.weights: none. Give weights, or choose encoder.batch_norm: support."
        )

    def _stages(self, network: Network) -> tuple[list[Stage], bool]:
        """The stages, and whether the network is known to have such."""
        before = Preprocess(network.mean, network.std, self.size, network.interpolation)
        parts = divide(network.module, network.recipes, self.pooled)
        if parts is not None:
            stages = [_stage(part) for part in parts]
            if is_whole(network.module, stages) or not self.pooled:
                return [_stage([("preprocess", before), *parts[0]]), *stages[1:]], True
        if not self.pooled:
            raise UserError(
                f"encoder.pooled: expected true with encoder.model: {self.model}, of which it is "
                "not known where its maps are, got false. Choose another model, such as resnet18."
            )
        return [_stage([("preprocess", before), ("network", network.module)])], False

    def _freeze(self, stages: nn.ModuleList) -> None:
        """Makes buffers of the parameters of the first stages."""
        if self.frozen_stages > len(stages):
            raise UserError(
                f"encoder.frozen_stages: expected at most the {len(stages)} stages of "
                f"{self.model}, got {self.frozen_stages}. Lower it."
            )
        for stage in stages[: self.frozen_stages]:
            freeze(stage)

    def _applied(
        self, network: Network, stages: Sequence[Stage], input_shape: tuple[int, ...]
    ) -> PretrainedEncoder:
        """The encoder, whose shapes are found by applying it."""
        try:
            return PretrainedEncoder(network, stages, input_shape)
        except UserError:
            raise
        except Exception as error:  # of any layer of any model
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"encoder.model: {self.model} cannot compute pictures of shape {input_shape} "
                f"({reason}). Set encoder.size to the pixels a side that it takes, such as 224."
            ) from None


def _stage(modules: Sequence[tuple[str, nn.Module]]) -> Stage:
    stage = Stage()
    for name, module in modules:
        stage.add_module(name, module)
    return stage


def missing(package: str, key: str, error: ImportError) -> UserError:
    """The error where a package that an encoder is made of is not installed."""
    return UserError(
        f"encoder.name: {key} needs the package {package}, got none that can be imported "
        f"({error}). Install it by pip install 'raymtl[vision]'."
    )
