"""Networks of torchvision (https://pytorch.org/vision)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import hub, nn

from raymtl.encoders.pretrained.base import PretrainedSpec
from raymtl.encoders.pretrained.network import Network, missing
from raymtl.encoders.pretrained.stages import TORCHVISION
from raymtl.schema.names import nearest
from raymtl.types import UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation that models without weights of torchvision's own are given."""


class TorchvisionSpec(PretrainedSpec):
    """A classifier of torchvision without its last linear layer, as it was pre-trained.

    Pictures are normalised by the mean and deviation of the model's best weights. Weights are a
    file, or `hub:NAME` with a name of torchvision's weights, such as `hub:IMAGENET1K_V1`. Stages
    are those of resnet, efficientnet, mobilenet, regnet and convnext. Other models have one stage.
    Deviations from torchvision: nothing is dropped by chance in training, and batch norms keep no
    running statistics.

    Example: `encoder: {name: torchvision, model: mobilenet_v2, size: 96, frozen_stages: 10}`
    """

    name: Literal["torchvision"] = "torchvision"

    def _network(self, size: tuple[int, int]) -> Network:
        try:
            from torchvision import models
        except ImportError as error:
            raise missing("torchvision", "torchvision", error) from None
        known = models.list_models(module=models)
        if self.model not in known:
            raise UserError(
                f"encoder.model: expected a classifier of torchvision, got '{self.model}'."
                f"{nearest(self.model, known)}"
            )
        sized: dict[str, Any] = {}
        if self.model.startswith("vit_"):
            sized["image_size"] = size[0]
        try:
            network = _made(self.model, sized)
        except Exception as error:  # of any model, such as a size that its patches do not divide
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"encoder.model: {self.model} cannot be made for pictures of {size[0]} x {size[1]} "
                f"pixels ({reason}). Set encoder.size."
            ) from None
        classifier = _take_classifier(network, self.model)
        mean, std = IMAGENET
        default = getattr(models.get_model_weights(self.model), "DEFAULT", None)
        if default is not None:
            transform = default.transforms()
            mean, std = transform.mean, transform.std
        return Network(
            network, TORCHVISION, tuple(mean), tuple(std), "bilinear", (f"{classifier}.",)
        )

    def _fetch(self, name: str) -> Path:
        from torchvision import models

        chosen = models.get_model_weights(self.model)[name]
        path = Path(hub.get_dir()) / "checkpoints" / Path(chosen.url).name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            hub.download_url_to_file(chosen.url, str(path), progress=False)
        return path


def _made(model: str, sized: Mapping[str, Any]) -> nn.Module:
    """The network with new weights, on the default device."""
    from torchvision import models

    network: nn.Module
    try:
        network = models.get_model(model, weights=None, **sized)
    except NotImplementedError:  # RegNets compute by tensors how wide they are, and meta has none
        with torch.device("cpu"):
            network = models.get_model(model, weights=None, **sized)
        network.to(torch.get_default_device())
    return network


def _take_classifier(network: nn.Module, model: str) -> str:
    """Takes the last linear layer out of a network; its name."""
    linear = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise UserError(
            f"encoder.model: {model} ends in no linear layer, so that it is not known which of its "
            "features are to be read. Choose another model, such as resnet18."
        )
    classifier: str = linear[-1]
    parent, _, name = classifier.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return classifier
