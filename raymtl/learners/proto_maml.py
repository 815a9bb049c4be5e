"""Proto-MAML (Triantafillou et al., 2019, arXiv:1903.03096).

The head starts from the prototypes c_n = mean f(S_n): -|f - c_n|^2 = 2 c_n . f - |c_n|^2 - |f|^2, so that
W_n = 2 c_n and b_n = -|c_n|^2 score as the distances do; then MAML.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from raymtl.learners.base import Objective
from raymtl.learners.maml import MAML
from raymtl.learners.protonet import BELOW
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, Task, select


class ProtoMAML(MAML):
    """Starts every linear head from the class means of the support set, and adapts all of the model from there.

    The starting heads depend on the encoder, and the meta-gradient follows them; with `first_order` it takes the
    Jacobian of the steps alone as the identity. The model's own heads are not learned: they are replaced. With
    `inner_steps: 0` it is protonet. A class that the support set does not show scores 10 nats less than the least
    likely class that it shows, before, along and after the steps, as in protonet.
    """

    name: Literal["proto_maml"] = "proto_maml"  # type: ignore[assignment]
    helps: ClassVar[str] = "classes are new and examples few, and a few gradient steps are affordable"
    costs: ClassVar[str] = "k + 2 gradients, in second order through all of them"
    predicts_unadapted: ClassVar[bool] = False

    def check(self, tasks: Sequence[Task]) -> str | None:
        return needs_classes(tasks, "a prototype is the mean of a class") or needs_linear_heads(tasks)

    def adapt(
        self, model: SharingArchitecture, params: Params, support: Batch, objective: Objective, steps: int | None = None
    ) -> Params:
        heads: dict[str, Tensor] = {}
        for name, features in features_of(model, params, support.inputs).items():
            member = members(support, name, model.out_features[name], features)
            counts = member.sum(0)
            with torch.autocast(features.device.type, enabled=False):
                centre = member.T @ features / counts.clamp(min=1)[:, None]
                heads[f"model.heads.{name}.weight"] = 2 * centre
                heads[f"model.heads.{name}.bias"] = -centre.square().sum(-1)
            heads[f"learner.present.{name}"] = counts > 0
        return super().adapt(model, {**params, **heads}, support, objective, steps)

    def predict(
        self, model: SharingArchitecture, params: Params, inputs: Tensor | Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        present = select(params, "learner.present")
        logits = super().predict(model, params, inputs)
        return {name: below_shown(of, present[name]) if name in present else of for name, of in logits.items()}


def needs_classes(tasks: Sequence[Task], reason: str) -> str | None:
    """The reason and the first task that is no classification; None where all are."""
    return next((f"{reason}, and task '{t.name}' is a {t.kind}" for t in tasks if t.kind != "classification"), None)


def needs_linear_heads(tasks: Sequence[Task]) -> str | None:
    """The first task whose head cannot be replaced by another linear one."""
    for task in tasks:
        with torch.device("meta"):
            head = task.head(1)
        if not isinstance(head, nn.Linear) or head.bias is None:
            return f"it sets the weights of linear heads, and that of task '{task.name}' is a {type(head).__name__}"
    return None


def features_of(model: SharingArchitecture, params: Params, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the heads would read, [N, in_features] of each task."""
    return functional_call(model, select(params, "model"), (inputs,), {"output": "features"})


def members(support: Batch, task: str, num_classes: int, like: Tensor) -> Tensor:
    """1 where the example is of the class, else 0, [N, C]; an example without a label is of no class."""
    target = support.targets[task]
    member = (target[:, None] == torch.arange(num_classes, device=target.device)).to(like)
    return torch.where(support.masks[task][:, None], member, 0.0) if task in support.masks else member


def below_shown(logits: Tensor, present: Tensor) -> Tensor:
    """[N, C] with the classes that are not `present` [C] at `BELOW` under the least likely present one.

    All are 0 where no class is present. No gradient follows the absent classes.
    """
    lowest = torch.where(present, logits, torch.inf).amin(-1, keepdim=True).detach()
    absent = torch.where(lowest.isfinite(), lowest - BELOW, 0.0)
    return torch.where(present, logits, absent)
