"""Proto-MAML (Triantafillou et al., 2019, arXiv:1903.03096).

The head starts from the prototypes c_n = mean f(S_n): -|f - c_n|^2 = 2 c_n . f - |c_n|^2 - |f|^2,
so that W_n = 2 c_n and b_n = -|c_n|^2 score as the distances do; then MAML.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from raymtl.learners.base import Objective
from raymtl.learners.classes import (
    below_shown,
    features_of,
    members,
    needs_classes,
    needs_linear_heads,
)
from raymtl.learners.maml import MAML
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, Task, select


class ProtoMAML(MAML):
    """Starts every linear head from the class means of the support set, and adapts the whole model
    from there.

    The starting heads depend on the encoder, and the meta-gradient passes through them.
    `first_order` takes only the Jacobian of the steps as the identity. The model's own heads are
    replaced and not learned. With `inner_steps: 0` this is protonet. A class that is absent from
    the support set scores 10 nats less than the least likely class that is present, before, during
    and after the steps, as in protonet.

    Example: `learner: {name: proto_maml, inner_lr: 0.05, inner_steps: 3}`
    """

    name: Literal["proto_maml"] = "proto_maml"  # type: ignore[assignment] # not the name of the base
    helps: ClassVar[str] = (
        "classes are new and examples few, and a few gradient steps are affordable"
    )
    costs: ClassVar[str] = "k + 2 gradients, in second order through all of them"
    supports_zero_shot: ClassVar[bool] = False

    def check(self, tasks: Sequence[Task]) -> str | None:
        return needs_classes(tasks, "a prototype is the mean of a class") or needs_linear_heads(
            tasks
        )

    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
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
        predictions = super().predict(model, params, inputs)
        for name, present in select(params, "learner.present").items():
            if name in predictions:
                predictions[name] = below_shown(predictions[name], present)
        return predictions
