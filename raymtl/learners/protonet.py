"""Prototypical networks (Snell et al., 2017, arXiv:1703.05175)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor

from raymtl.learners.base import AmortisedLearner, Objective
from raymtl.learners.classes import below_shown, features_of, members, needs_classes
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, Task


class ProtoNet(AmortisedLearner):
    """Classifies by the squared distance to the mean support feature of each class: logits -|f(x) -
    c_n|^2.

    The heads of the model are not used. A class can be absent from the support set where labels are
    missing. It then scores 10 nats less than the least likely class that is present, so that it is
    never predicted and its loss is finite. There is no prediction before adapting.

    Example: `learner: {name: protonet}`
    """

    name: Literal["protonet"] = "protonet"
    helps: ClassVar[str] = "classes are new and examples few; adapting takes one forward pass"
    costs: ClassVar[str] = "one gradient, of support and query together"

    def check(self, tasks: Sequence[Task]) -> str | None:
        return needs_classes(tasks, "a prototype is the mean of a class")

    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        prototypes: dict[str, Tensor] = {}
        for name, features in features_of(model, params, support.inputs).items():
            member = members(support, name, model.out_features[name], features)
            counts = member.sum(0)
            prototypes[f"learner.prototypes.{name}"] = (
                member.T @ features / counts.clamp(min=1)[:, None]
            )
            prototypes[f"learner.present.{name}"] = counts > 0
        return {**params, **prototypes}

    def predict(
        self, model: SharingArchitecture, params: Params, inputs: Tensor | Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        logits = {}
        for name, features in features_of(model, params, inputs).items():
            centre = params[f"learner.prototypes.{name}"]
            # Not cdist: its square root has no gradient at distance 0.
            distance = (features[:, None, :] - centre[None]).square().sum(-1)
            logits[name] = below_shown(-distance, params[f"learner.present.{name}"])
        return logits
