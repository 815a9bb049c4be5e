"""What learners that classify by support features share: class members and absent classes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from raymtl.encoders.dropout import dropping
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, Task, select

BELOW = 10.0  # nats


def needs_classes(tasks: Sequence[Task], reason: str) -> str | None:
    """The reason and the first task that is not a classification; None where all are."""
    odd = next((task for task in tasks if not task.kind.has_class_logits), None)
    if odd is None:
        return None
    return f"{reason}, and task '{odd.name}' is {odd.kind.described}{odd.kind.classes_hint}"


def needs_linear_heads(tasks: Sequence[Task]) -> str | None:
    """Why the head of a task cannot be replaced by a linear one; None where all can."""
    for task in tasks:
        with torch.device("meta"):
            head = task.head((1,))
        if not isinstance(head, nn.Linear) or head.bias is None:
            return (
                f"it sets the weights of linear heads, and that of task '{task.name}' is a "
                f"{type(head).__name__}"
            )
    return None


def features_of(
    model: SharingArchitecture, params: Params, inputs: Tensor | Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The features [N, in_features] that the head of each task reads."""
    with dropping(params):
        features: dict[str, Tensor] = functional_call(
            model, select(params, "model"), (inputs,), {"output": "features"}
        )
    return features


def members(support: Batch, task: str, num_classes: int, like: Tensor) -> Tensor:
    """1 where the example belongs to the class, else 0, [N, C].

    An example without a label belongs to no class.
    """
    target = support.targets[task]
    member = (target[:, None] == torch.arange(num_classes, device=target.device)).to(like)
    if task in support.masks:
        return torch.where(support.masks[task][:, None], member, 0.0)
    return member


def below_shown(logits: Tensor, present: Tensor) -> Tensor:
    """The logits [N, C], with absent classes `BELOW` the least likely present one.

    `present` [C] marks the classes of the support set. Without any, all logits are 0. No gradient
    flows through absent classes.
    """
    lowest = torch.where(present, logits, torch.inf).amin(-1, keepdim=True).detach()
    absent = torch.where(lowest.isfinite(), lowest - BELOW, 0.0)
    return torch.where(present, logits, absent)
