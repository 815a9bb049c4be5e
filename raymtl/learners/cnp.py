"""Conditional neural processes (Garnelo et al., 2018, arXiv:1807.01613).

r = mean_i h(f(x_i), y_i) over the support set; a query is predicted as g(f(x), r).
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from raymtl.learners.base import AmortisedLearner, Objective
from raymtl.learners.classes import below_shown, features_of
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


class CNP(AmortisedLearner):
    """Sums up a support set in `dim` numbers, which a learned decoder reads beside the query.

    h and g are perceptrons with one hidden layer of `hidden` units, separate for each task. They
    read the features f that the model's heads would read; the heads are not used. For a regression
    h reads the features and the label. For a classification there is an r for each class, the mean
    of h over its features, and g reads all of them. A class that is absent from the support set
    scores 10 nats less than the least likely class that is present. Examples without a label are
    not read, and without any label r is 0.

    Deviations from the paper: predictions are points and not distributions, under the loss of the
    task; h and g read features that tasks share and not the inputs. As in the paper, a class is
    identified by its number, so the order of the classes must be random in each episode or mean the
    same in all.

    Example: `learner: {name: cnp, dim: 32, hidden: 64}`
    """

    name: Literal["cnp"] = "cnp"
    helps: ClassVar[str] = (
        "there are very many tasks to learn from, and adapting has to take one forward pass"
    )
    costs: ClassVar[str] = "one gradient, of support and query together"
    dim: PositiveInt = 64
    hidden: PositiveInt = 64

    def check(self, tasks: Sequence[Task]) -> str | None:
        return needs_readable_labels(tasks)

    def init_params(self, model_params: Params, generator: torch.Generator) -> Params:
        own: dict[str, Tensor] = {}
        like = next(iter(model_params.values()))
        for task, (features, outputs) in head_widths(model_params).items():
            groups = outputs  # one for a regression
            widths = width_read(features, outputs), self.hidden, self.dim
            own |= perceptron_params(f"encoder.{task}", widths, generator, like)
            widths = features + groups * self.dim, self.hidden, outputs
            own |= perceptron_params(f"decoder.{task}", widths, generator, like)
        return own

    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        own = select(params, "learner")
        summaries: dict[str, Tensor] = {}
        for name, (rows, groups) in read(model, params, support).items():
            summaries[f"summary.{name}"] = group_means(
                perceptron(own, f"encoder.{name}", rows), groups
            )
            if model.out_features[name] > 1:
                summaries[f"present.{name}"] = groups.any(0)
        return {**params, **prefixed(summaries, "learner")}

    def predict(
        self, model: SharingArchitecture, params: Params, inputs: Tensor | Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        own = select(params, "learner")
        predictions = {}
        for name, features in features_of(model, params, inputs).items():
            summary = own[f"summary.{name}"].flatten().expand(len(features), -1)
            outputs = perceptron(own, f"decoder.{name}", torch.cat([features, summary], -1)).to(
                features
            )
            present = own.get(f"present.{name}")
            if present is None:
                predictions[name] = outputs
            else:
                predictions[name] = below_shown(outputs, present)
        return predictions
