"""Low-rank adapters as peft writes them (Mangrulkar et al., 2022,
https://github.com/huggingface/peft; tested with 0.21).

peft adds (lora_alpha / r) B A x to a layer, with A [r, in] and B [out, r] of one task. In a
convolution of several groups its A sees all channels and its B has the groups. So r is larger
there by the number of groups, and A is 0 outside its group.
"""

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raymtl.encoders import Encoder, PretrainedEncoder
from raymtl.encoders.norm import BatchStatistics
from raymtl.sharing.lora import Factors, LoRA
from raymtl.types import UserError


class PeftAdapter(NamedTuple):
    """What peft reads of one task: adapter_config.json and adapter_model.safetensors."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


class _Layer(NamedTuple):
    """The adapter of one layer."""

    rank: int
    alpha: float
    A: Tensor
    B: Tensor


def check_exportable(model: LoRA) -> None:
    """Raises UserError for what peft or the network's own library would compute otherwise."""
    encoder = _encoder(model)
    for name in model.adapted:
        layer = encoder.get_submodule(name)
        if isinstance(layer, nn.Conv2d) and max(layer.dilation) > 1 and max(layer.kernel_size) > 1:
            raise UserError(
                f"sharing.modules: expected convolutions without dilation, for which peft has no "
                f"adapters, got {name} with {layer.dilation}. Add '-{name}' and train again."
            )
    if not isinstance(encoder, PretrainedEncoder):
        return
    if any(isinstance(module, BatchStatistics) for module in encoder.modules()):
        raise UserError(
            "encoder.batch_norm: expected frozen, since the network of the library normalises by "
            "statistics that it has kept, got those of the support set. Give encoder.weights and "
            "train again."
        )


def peft_adapter(model: LoRA, task: str) -> PeftAdapter:
    """The adapters of a task, for the network whose values `network_values` gives."""
    encoder, names = _encoder(model), _names_in_network(_encoder(model))
    layers = {
        names[f"{name}.weight"].removesuffix(".weight"): _layer(encoder.get_submodule(name), task)
        for name in model.adapted
    }
    rank = max(layer.rank for layer in layers.values())
    alpha = max(layer.alpha for layer in layers.values())
    exact = {name: f"^{re.escape(name)}" for name in layers}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        # A regular expression, since a list would also choose layers whose names end alike.
        "target_modules": "|".join(re.escape(name) for name in layers),
        "rank_pattern": {exact[n]: one.rank for n, one in layers.items() if one.rank != rank},
        "alpha_pattern": {exact[n]: one.alpha for n, one in layers.items() if one.alpha != alpha},
    }
    tensors = {}
    for name, layer in layers.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = layer.A
        tensors[f"base_model.model.{name}.lora_B.weight"] = layer.B
    return PeftAdapter(config, tensors)


def network_values(model: LoRA) -> dict[str, Tensor]:
    """The values of the trunk without adapters, by the names that its own library gives them."""
    encoder = _encoder(model)
    own = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    return {there: own[name] for name, there in _names_in_network(encoder).items()}


def _encoder(model: LoRA) -> Encoder:
    encoder = model.encoders[0]
    assert isinstance(encoder, Encoder)
    return encoder


def _names_in_network(encoder: Encoder) -> dict[str, str]:
    """Name of a value of the trunk -> its name in the library; the same for raymtl's own."""
    if isinstance(encoder, PretrainedEncoder):
        return {own: there for there, own in encoder.file_names.items()}
    values = [name for name, _ in encoder.named_parameters()]
    values += [name for name, _ in encoder.named_buffers()]
    return {name: name for name in values if ".lora." not in name}


def _layer(layer: nn.Module, task: str) -> _Layer:
    factors = layer.lora
    assert isinstance(factors, Factors)
    down: Tensor = factors.A
    up: Tensor = factors.B[task]
    if isinstance(layer, nn.Conv2d):
        up = up[..., None, None]
        if layer.groups > 1:
            down = _over_groups(down, layer.groups)
    rank = len(down)
    return _Layer(rank, factors.scale * rank, down, up)


def _over_groups(down: Tensor, groups: int) -> Tensor:
    """A [r, in / groups, height, width] -> [groups * r, in, height, width], 0 between groups."""
    rank, channels, *kernel = down.shape
    dense = down.new_zeros(groups, rank, groups, channels, *kernel)
    each = torch.arange(groups)
    dense[each, :, each] = down
    return dense.view(groups * rank, groups * channels, *kernel)
