"""Networks of timm (Wightman, 2019, https://github.com/huggingface/pytorch-image-models)."""

from pathlib import Path
from typing import Any, Literal

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
    Deviations from timm: nothing is dropped by chance in training, and batch norms keep no running
    statistics.

    Example: `encoder: {name: timm, model: convnext_atto, size: 96, frozen_stages: 2}`
    """

    name: Literal["timm"] = "timm"

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
        described = timm.get_pretrained_cfg(architecture)
        if described is not None and described.fixed_input_size:
            sized["img_size"] = size
        try:
            network: Any = timm.create_model(self.model, pretrained=False, num_classes=0, **sized)
        except Exception as error:  # of any model, such as a size that its patches do not divide
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"encoder.model: {self.model} cannot be made for pictures of {size[0]} x {size[1]} "
                f"pixels ({reason}). Set encoder.size, or correct the name."
            ) from None
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

    def _fetch(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, FILE))


def _mode(interpolation: object) -> str:
    """An interpolation of timm in the words of torch."""
    if interpolation == "bicubic":
        return "bicubic"
    return "bilinear"
