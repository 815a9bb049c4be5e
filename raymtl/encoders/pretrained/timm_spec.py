"""Networks of timm (Wightman, 2019, https://github.com/huggingface/pytorch-image-models)."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator
from torch import nn

from raymtl.encoders.dropout import DropResidual, Share
from raymtl.encoders.pretrained.base import PretrainedSpec
from raymtl.encoders.pretrained.network import Network, missing
from raymtl.encoders.pretrained.stages import TIMM
from raymtl.schema.names import nearest
from raymtl.types import UserError

FILE = "model.safetensors"
"""What repositories of timm's models have on the hub."""


class TimmSpec(PretrainedSpec):
    """A network of timm without its classifier, as it was pre-trained.

    Pictures are normalised by the mean and deviation of the model's own configuration, and its tag
    (`resnet18.a1_in1k`) chooses that. Weights are a file, or `hub:OWNER/REPOSITORY` of Hugging
    Face. Stages are those of efficientnet, mobilenetv3, resnet, regnet and convnext; a vision
    transformer has one for each block after that of its patches. Other models have one stage.
    Deviations from timm: nothing is dropped by chance in training but residuals by `drop_path`, and
    batch norms keep no running statistics.

    Example: `encoder: {name: timm, model: convnext_atto, size: 96, frozen_stages: 2}`
    """

    name: Literal["timm"] = "timm"
    drop_path: Share = 0.0
    """The share of examples whose last residual is dropped in training, less in the blocks before
    (stochastic depth, arXiv:1603.09382): timm's drop_path_rate.
    """

    @model_validator(mode="after")
    def _trains_blocks(self) -> Self:
        if self.drop_path and self.frozen and not self.frozen_stages:
            raise UserError(
                "encoder.drop_path: expected 0 with encoder.frozen: true, by which no block is "
                f"trained, got {self.drop_path}. Leave it away, or set encoder.frozen_stages."
            )
        return self

    def _network(self, size: tuple[int, int]) -> Network:
        try:
            import timm
        except ImportError as error:
            raise missing("timm", "timm", error) from None
        architecture = self.model.partition(".")[0]
        if not timm.is_model(architecture):
            raise UserError(
                f"encoder.model: expected a model of timm, got '{self.model}'."
                f"{nearest(architecture, timm.list_models())}"
            )
        sized: dict[str, Any] = {}
        if self.drop_path:
            sized["drop_path_rate"] = self.drop_path
        described = timm.get_pretrained_cfg(architecture)
        if described is not None and described.fixed_input_size:
            sized["img_size"] = size
        try:
            network: Any = timm.create_model(self.model, pretrained=False, num_classes=0, **sized)
        except Exception as error:  # of any model, such as a size that its patches do not divide
            if "drop_path_rate" in str(error):
                raise self._no_residuals() from None
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"encoder.model: {self.model} cannot be made for pictures of {size[0]} x {size[1]} "
                f"pixels ({reason}). Set encoder.size, or correct the name."
            ) from None
        if self.drop_path:
            self._drop_residuals(network)
        config = network.pretrained_cfg
        classifiers = config.get("classifier") or ()
        if isinstance(classifiers, str):
            classifiers = (classifiers,)
        return Network(
            network,
            TIMM,
            tuple(config.get("mean", (0.5,))),
            tuple(config.get("std", (0.5,))),
            _mode(config.get("interpolation")),
            tuple(f"{name}." for name in classifiers),
        )

    def _drop_residuals(self, network: nn.Module) -> None:
        """Puts what drops by counters in the place of what draws by chance."""
        found = 0
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if type(child).__name__ == "DropPath":
                    setattr(parent, name, DropResidual(getattr(child, "drop_prob", 0.0) or 0.0))
                    found += 1
        if not found:
            raise self._no_residuals()

    def _no_residuals(self) -> UserError:
        return UserError(
            f"encoder.drop_path: expected a model of timm with residuals that it can drop, got "
            f"{self.model}. Leave it away, or choose another model."
        )

    def _fetch(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, FILE))


def _mode(interpolation: object) -> str:
    """An interpolation of timm in the words of torch."""
    if interpolation == "bicubic":
        return "bicubic"
    return "bilinear"
