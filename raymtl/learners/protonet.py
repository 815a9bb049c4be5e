"""Prototypical networks (Snell et al., 2017, arXiv:1703.05175)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from raymtl.learners.base import MetaLearner, Objective
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, Task, select

BELOW = 10.0  # nats


class ProtoNet(MetaLearner):
    """Classifies by the squared distance to the mean support feature of each class: logits -|f(x) - c_n|^2.

    The heads of the model are not used. A class that the support set does not show, as happens where labels are
    missing, scores `BELOW` less than the least likely class that it shows: it is never predicted, and its loss is
    finite. Nothing is learned from the support set by gradient, so there is no prediction before adaptation.
    """

    name: Literal["protonet"] = "protonet"
    helps: ClassVar[str] = "classes are new and examples few; adapting takes one forward pass"
    costs: ClassVar[str] = "one gradient, of support and query together"
    predicts_unadapted: ClassVar[bool] = False

    @property
    def num_steps(self) -> int:
        return 0

    def check(self, tasks: Sequence[Task]) -> str | None:
        for task in tasks:
            if task.kind != "classification":
                return f"a prototype is the mean of a class, and task '{task.name}' is a {task.kind}"
        return None

    def adapt(
        self, model: SharingArchitecture, params: Params, support: Batch, objective: Objective, steps: int | None = None
    ) -> Params:
        prototypes: dict[str, Tensor] = {}
        features = self._features(model, params, support.inputs)
        for name, num_classes in model.out_features.items():
            classes = torch.arange(num_classes, device=features[name].device)
            members = (support.targets[name][:, None] == classes).to(features[name].dtype)  # [N, C]
            if name in support.masks:
                members = torch.where(support.masks[name][:, None], members, 0.0)
            counts = members.sum(0)
            prototypes[f"learner.prototypes.{name}"] = members.T @ features[name] / counts.clamp(min=1)[:, None]
            prototypes[f"learner.present.{name}"] = counts > 0
        return {**params, **prototypes}

    def predict(
        self, model: SharingArchitecture, params: Params, inputs: Tensor | Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        features = self._features(model, params, inputs)
        logits = {}
        for name in model.heads:
            centre = params[f"learner.prototypes.{name}"]
            # Not cdist: its square root has no gradient at distance 0.
            distance = (features[name][:, None, :] - centre[None]).square().sum(-1)
            present = params[f"learner.present.{name}"]
            lowest = torch.where(present, -distance, torch.inf).amin(-1, keepdim=True).detach()
            absent = torch.where(lowest.isfinite(), lowest - BELOW, 0.0)  # 0 for all where no class is shown
            logits[name] = torch.where(present, -distance, absent)
        return logits

    @staticmethod
    def _features(
        model: SharingArchitecture, params: Params, inputs: Tensor | Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return functional_call(model, select(params, "model"), (inputs,), {"output": "features"})
