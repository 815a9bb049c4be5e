"""What the specs of timm's and torchvision's networks have in common."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import nn

from raymtl.encoders.base import Encoder, EncoderSpecBase, Stage, freeze
from raymtl.encoders.mlp import MLPSpec
from raymtl.encoders.pictures import picture_shape
from raymtl.encoders.pretrained import frozen, frozen_norm, weights
from raymtl.encoders.pretrained.network import Network, PretrainedEncoder
from raymtl.encoders.pretrained.parts import Preprocess, make_pure
from raymtl.encoders.pretrained.stages import divide, is_whole
from raymtl.types import Spec, UserError


class Found(Spec):
    """What `encoder.weights` was when it was read, and for which network."""

    weights: str
    network: str
    """`encoder.name` and `encoder.model`."""
    sha256: str
    """Of the file."""
    feature_shape: tuple[PositiveInt, ...] | None = None
    """Of what is computed once for each picture, with `frozen`."""


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
    """How many stages, from the input on, keep their values; these are no parameters. With `frozen`
    what they compute is computed once, and the stages behind them are trained on it.
    """
    lr_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The factor of the learning rate from each stage to the one before it: the last stage has
    lr * lr_scale, the one before it lr * lr_scale^2. Heads have lr.
    """
    frozen: bool = False
    """Whether the network, or its first `frozen_stages`, are constant. The features of each picture
    are then computed once, and kept in files, which trainings read in place of the pictures.
    """
    trunk: MLPSpec | None = None
    """What is trained on the features of a frozen network, below the heads; None: the heads alone.
    """
    cache: str | None = None
    """The folder where features are kept; None: `.features` in `output`."""
    found: Found | None = None
    """What a run found in the file; not to be set."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_frozen()
        found = self.found
        if found and (found.weights, found.network) != (self.weights, self._network_name):
            # The object is frozen for others; here it is still being made.
            self.__dict__["found"] = None
        elif found and self.frozen and found.feature_shape is None:
            self.__dict__["found"] = None
        return self

    def _check_frozen(self) -> None:
        """Raises UserError for keys that say nothing of a frozen network, or of one that is not."""
        if not self.frozen:
            for key in ("trunk", "cache"):
                if getattr(self, key) is not None:
                    raise UserError(
                        f"encoder.{key}: expected encoder.frozen: true beside it, whose features "
                        "it is for, got false. Set it, or leave the key away."
                    )
            return
        if self.weights == weights.NONE:
            raise UserError(
                "encoder.frozen: expected encoder.weights beside it, since a network that is never "
                "trained has learned nothing else, got none. Name a file, or hub:NAME."
            )
        if not self.pooled:
            raise UserError(
                "encoder.frozen: expected encoder.pooled: true, since features are kept as "
                "vectors, got false. Choose encoder.frozen_stages to keep stages constant."
            )
        if self.batch_norm == "support":
            raise UserError(
                "encoder.frozen: expected encoder.batch_norm: auto, since the features of a "
                "picture must not depend on the others, got support. Leave it away."
            )
        if self.frozen_stages:
            if self.trunk is not None:
                raise UserError(
                    "encoder.trunk: expected none beside encoder.frozen_stages, whose features the "
                    "other stages of the network read, got one. Leave one of them away."
                )
        elif self.lr_scale != 1:
            raise UserError(
                "encoder.lr_scale: expected none beside encoder.frozen: true, by which no stage is "
                f"trained, got {self.lr_scale}. Leave it away, or set encoder.frozen_stages."
            )

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
    def network(self) -> Self:
        """The network alone, as an encoder of pictures whose every value is a parameter."""
        changed = {"frozen": False, "frozen_stages": 0, "trunk": None, "cache": None}
        return self.model_copy(update=changed)

    @property
    def weights_source(self) -> str:
        return self.weights

    @property
    def has_per_step_params(self) -> bool:
        return self.trunk is not None and self.trunk.has_per_step_params

    @property
    def is_resolved(self) -> bool:
        return self.weights == weights.NONE or self.found is not None

    def resolve(self, input_shape: tuple[int, ...]) -> Self:
        if self.is_resolved:
            return self
        source = weights.absolute(self.weights)
        read = weights.read(source, self._fetch)
        with torch.device("meta"):
            encoder = self.build_network(input_shape)
        encoder.check_fit(source, read.entries)
        found = Found(weights=source, network=self._network_name, sha256=read.sha256)
        if self.frozen:
            with torch.device("meta"):
                whole = self.network.build_network(input_shape)
            shape = frozen.first_stages(whole, self.frozen_stages).shapes[-1]
            found = found.model_copy(update={"feature_shape": shape})
        return self.model_copy(update={"weights": source, "found": found})

    def initialise(self, encoder: Encoder) -> None:
        if self.weights == weights.NONE or (self.frozen and not self.frozen_stages):
            return
        if isinstance(encoder, frozen.LastStages):
            encoder = encoder.whole
        assert isinstance(encoder, PretrainedEncoder)
        if self.found is None:
            read = weights.read(weights.absolute(self.weights), self._fetch)
        else:
            read = weights.read_same(self.weights, self.found.sha256, self._fetch)
        encoder.take(self.weights, read.entries)

    def build(self, input_shape: tuple[int, ...], inner_steps: int = 0) -> Encoder:
        """For pictures as `build_network` takes them; with `frozen` for features of pictures of
        this shape.
        """
        if not self.frozen:
            return self.build_network(input_shape)
        if not self.frozen_stages:
            return frozen.build_on_features(self.trunk, self.feature_shape, inner_steps)
        whole = self.network.build_network(input_shape)
        return frozen.LastStages(whole, self.frozen_stages)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of what is computed once for each picture. Raises UserError before weights were read."""
        if self.found is None or self.found.feature_shape is None:
            raise frozen.unresolved()
        return self.found.feature_shape

    def preprocessing(self, input_shape: tuple[int, ...]) -> dict[str, object]:
        """What is done to pictures before the first layer, in plain values."""
        height, width = self._size(input_shape)
        with torch.device("meta"):
            network = self._network((height, width))
        return {
            "size": [height, width],
            "mean": list(network.mean),
            "std": list(network.std),
            "interpolation": network.interpolation,
        }

    def build_network(self, input_shape: tuple[int, ...]) -> PretrainedEncoder:
        """For pictures [N, channels, height, width] of 1 or 3 channels, in [0, 1].

        Raises UserError for other inputs, for a model that is not known, and for what it cannot do.
        """
        channels, _, _ = picture_shape(getattr(self, "name", ""), input_shape, at_least=1)
        if channels not in (1, 3):
            raise UserError(
                f"encoder.model: {self.model} takes pictures of 1 or 3 channels, got inputs of "
                f"shape {input_shape}. Choose another encoder.name, such as resnet18."
            )
        network = self._network(self._size(input_shape))
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

    def _size(self, input_shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the pictures that the network sees."""
        if self.size is not None:
            return self.size, self.size
        return input_shape[-2], input_shape[-1]

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
