"""Applies the heads of all tasks; those of one shape as one product of matrices."""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.tasks import grouped


def predictions_of(
    heads: Mapping[str, nn.Module], features: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The prediction of each task from the features [N, F] that its head reads."""
    names = list(features)
    predictions: dict[str, Tensor] = {}
    for group in grouped(_key(heads[name], features[name]) for name in names):
        own = [names[index] for index in group]
        if len(own) == 1:
            predictions[own[0]] = heads[own[0]](features[own[0]])
        else:
            linear = [head for head in map(heads.__getitem__, own) if isinstance(head, nn.Linear)]
            outputs = _batched(linear, [features[name] for name in own])
            predictions |= dict(zip(own, outputs, strict=True))
    return {name: predictions[name] for name in names}


def _key(head: nn.Module, features: Tensor) -> Hashable | None:
    """Equal for heads that are one when stacked; None for one that cannot be stacked."""
    if type(head) is not nn.Linear:
        return None
    if torch.compiler.is_exporting():  # the number of examples is then a symbol without a hash
        return None
    return head.in_features, head.out_features, head.bias is None, features.shape


def _batched(heads: Sequence[nn.Linear], features: Sequence[Tensor]) -> Sequence[Tensor]:
    """The outputs [N, out] of linear heads of one shape."""
    weights_COF = torch.stack([head.weight for head in heads])
    biases: list[Tensor] = [head.bias for head in heads if head.bias is not None]
    first = features[0]
    if all(own is first for own in features):
        bias = torch.cat(biases) if biases else None
        joint = F.linear(first, weights_COF.flatten(0, 1), bias)
        outputs_NCO = joint.reshape(-1, *weights_COF.shape[:2])
        return outputs_NCO.unbind(1)
    outputs_CNO = torch.stack(list(features)) @ weights_COF.mT
    if biases:
        outputs_CNO = outputs_CNO + torch.stack(biases)[:, None]
    return outputs_CNO.unbind()
