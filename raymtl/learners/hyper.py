"""Fast weights by a hypernetwork with FiLM, after CNAPs (Requeima et al., 2019, arXiv:1906.07697).

phi = h_psi(S) in one pass: z = mean_i e(f(x_i), y_i); units become (1 + gamma(z)) u + beta(z);
heads from class means.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from raymtl.learners.base import AmortisedLearner, Objective
from raymtl.learners.classes import below_shown
from raymtl.learners.sets import (
    group_means,
    head_widths,
    needs_readable_labels,
    perceptron,
    perceptron_params,
    read,
    width_read,
)
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, Task, prefixed, select


class Hyper(AmortisedLearner):
    """Computes weights that fit a support set in one pass: scales and shifts of the model's units,
    and its heads.

    The support set is encoded from the features of the unadapted model; for a regression the label
    stands beside them. A perceptron for each task, a mean over its labelled examples and a mean
    over the tasks give a code z of `dim` numbers. A second perceptron of z feeds linear maps that
    emit a scale 1 + gamma and a shift beta for every parameter p of one dimension outside the
    heads. Such a p becomes (1 + gamma) p + beta. If p is the bias of a layer, the weights of that
    layer are multiplied by 1 + gamma too, which together is a feature-wise modulation of its
    outputs. The linear maps start at 0.

    The head of a classification comes from the means c_n of the modulated features of each class,
    with a learned weight a for each feature that starts at 1: W_n = 2 a c_n and b_n = -sum a c_n^2.
    These score as the squared distances to c_n do. A class that is absent from the support set
    scores 10 nats less than the least likely class that is present. The head of a regression is
    that of the model plus a change that is emitted from z. Adapted parameters are those of an
    ordinary model.

    Deviations from the paper: the set encoder reads features of the trunk instead of pictures; the
    trunk is learned together with the rest instead of before; the maps that emit are linear, and
    none of them reads how the layer before was modulated; heads are class means under a learned
    metric instead of outputs of a network; the paper has only classifications.

    Example: `learner: {name: hyper, dim: 32}`
    """

    name: Literal["hyper"] = "hyper"
    helps: ClassVar[str] = (
        "adapting has to take no gradient, and the features too should fit the task"
    )
    costs: ClassVar[str] = "one gradient, of twice the support and the query together"
    dim: PositiveInt = 64

    def check(self, tasks: Sequence[Task]) -> str | None:
        return needs_readable_labels(tasks)

    def init_params(self, model_params: Params, generator: torch.Generator) -> Params:
        like = next(iter(model_params.values()))
        own = perceptron_params("code", (self.dim, self.dim, self.dim), generator, like)
        for task, (features, outputs) in head_widths(model_params).items():
            widths = width_read(features, outputs), self.dim, self.dim
            own |= perceptron_params(f"encoder.{task}", widths, generator, like)
            if outputs > 1:
                own[f"metric.{task}"] = like.new_ones(features)
            else:
                own[f"head.{task}"] = like.new_zeros(features + 1, self.dim)
        for name, value in model_params.items():
            if value.ndim == 1 and not name.startswith("heads."):
                own[f"scale.{name}"] = like.new_zeros(len(value), self.dim)
                own[f"shift.{name}"] = like.new_zeros(len(value), self.dim)
        return own

    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        own, theta = select(params, "learner"), select(params, "model")
        device = next(iter(params.values())).device.type
        plain = read(model, params, support)
        with torch.autocast(device, enabled=False):
            emitted = self._emitted(own, plain)
            phi = {**params, **prefixed(_modulated(own, theta, emitted), "model")}
        fitted = read(model, phi, support)
        heads: dict[str, Tensor] = {}
        with torch.autocast(device, enabled=False):
            for name, (rows, groups) in fitted.items():
                if model.out_features[name] > 1:
                    centres = group_means(rows, groups)
                    weighed = own[f"metric.{name}"] * centres
                    heads[f"model.heads.{name}.weight"] = 2 * weighed
                    heads[f"model.heads.{name}.bias"] = -(centres * weighed).sum(-1)
                    heads[f"learner.present.{name}"] = groups.any(0)
                else:
                    change = own[f"head.{name}"] @ emitted
                    heads[f"model.heads.{name}.weight"] = (
                        theta[f"heads.{name}.weight"] + change[:-1]
                    )
                    heads[f"model.heads.{name}.bias"] = theta[f"heads.{name}.bias"] + change[-1:]
        return {**phi, **heads}

    def _emitted(self, own: Params, support: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """What the emitters read, [dim].

        It depends neither on the order of the examples nor on examples without a label.
        """
        codes, has_labels = [], []
        for name, (rows, groups) in support.items():
            labelled = groups.sum(1, keepdim=True)
            codes.append(group_means(perceptron(own, f"encoder.{name}", rows), labelled)[0])
            has_labels.append(labelled.any())
        weight = torch.stack(has_labels).to(codes[0])
        z = weight @ torch.stack(codes) / weight.sum().clamp(min=1)
        return F.relu(perceptron(own, "code", z))

    def predict(
        self, model: SharingArchitecture, params: Params, inputs: Tensor | Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        predictions = super().predict(model, params, inputs)
        for name, present in select(params, "learner.present").items():
            if name in predictions:
                predictions[name] = below_shown(predictions[name], present)
        return predictions


def _modulated(own: Params, theta: Params, emitted: Tensor) -> dict[str, Tensor]:
    """The parameters of the trunk that the emitted scales and shifts change."""
    changed: dict[str, Tensor] = {}
    for name, scale_from in select(own, "scale").items():
        scale = 1 + scale_from @ emitted
        changed[name] = scale * theta[name] + own[f"shift.{name}"] @ emitted
        weight = name.removesuffix("bias") + "weight"
        if name.endswith(".bias") and weight in theta and theta[weight].ndim > 1:
            changed[weight] = scale.view(-1, *[1] * (theta[weight].ndim - 1)) * theta[weight]
    return changed
