"""What amortised learners share: what they read of a support set, perceptrons, group means."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from raymtl.learners.classes import features_of, members, needs_linear_heads
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, Task


def needs_readable_labels(tasks: Sequence[Task]) -> str | None:
    """The first task whose labels cannot be read; None where all can.

    An example can be told the number of its class, or one number; not a set of labels or a vector.
    """
    for task in tasks:
        if task.encode_target is None:
            return f"it reads the labels, and those of task '{task.name}' have no encoding"
        is_class = task.kind.has_class_logits and task.out_features > 1
        is_number = task.kind.predicts_numbers and task.out_features == 1
        if not is_class and not is_number:
            return (
                f"it reads one class or one number of each example, and task '{task.name}' is "
                f"{task.kind.described} with an output of {task.out_features}"
            )
    return needs_linear_heads(tasks)


def head_widths(model_params: Params) -> dict[str, tuple[int, int]]:
    """The numbers of features and of outputs of each task, by the shape of its linear head."""
    weights = {
        n.split(".")[1]: w
        for n, w in model_params.items()
        if n.startswith("heads.") and n.endswith(".weight")
    }
    return {task: (weight.shape[1], weight.shape[0]) for task, weight in weights.items()}


def width_read(features: int, outputs: int) -> int:
    """The width of the rows that `read` returns."""
    if outputs == 1:
        return features + 1
    return features


def read(
    model: SharingArchitecture, params: Params, support: Batch
) -> dict[str, tuple[Tensor, Tensor]]:
    """The support set of each task as rows [N, width] and memberships in groups [N, G].

    For a classification a row holds the features, and the groups are the classes. For a regression
    a row holds the features and the label in the unit of the predictions, and there is one group.
    An example without a label belongs to no group.
    """
    read_by_task = {}
    for name, features in features_of(model, params, support.inputs).items():
        if model.out_features[name] > 1:
            read_by_task[name] = (
                features,
                members(support, name, model.out_features[name], features),
            )
        else:
            encoded, target = model.encoded[name], support.targets[name]
            assert encoded is not None, f"task '{name}' was not checked"
            labelled = support.masks.get(name, torch.ones_like(target, dtype=torch.bool))
            label = encoded(torch.where(labelled, target, 0.0)).to(features)
            read_by_task[name] = torch.cat([features, label], -1), labelled[:, None].to(features)
    return read_by_task


def group_means(rows: Tensor, groups: Tensor) -> Tensor:
    """[N, D] and [N, G] -> [G, D]; 0 for a group without examples."""
    return groups.T @ rows / groups.sum(0).clamp(min=1)[:, None]


def perceptron_params(
    name: str, widths: tuple[int, int, int], generator: torch.Generator, like: Tensor
) -> dict[str, Tensor]:
    """Two linear layers, with the initial scale of He et al., 2015 (arXiv:1502.01852)."""
    own: dict[str, Tensor] = {}
    for index, (before, after) in enumerate(pairwise(widths)):
        own[f"{name}.{index}.weight"] = (
            torch.randn(after, before, generator=generator).to(like) * (2 / before) ** 0.5
        )
        own[f"{name}.{index}.bias"] = like.new_zeros(after)
    return own


def perceptron(own: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """The two layers with a ReLU between them."""
    hidden = F.relu(F.linear(x, own[f"{name}.0.weight"], own[f"{name}.0.bias"]))
    return F.linear(hidden, own[f"{name}.1.weight"], own[f"{name}.1.bias"])
