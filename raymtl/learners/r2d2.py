"""R2-D2 (Bertinetto et al., 2018, arXiv:1805.08136).

W = argmin |X W - Y|^2 + lambda |W|^2 = (X'X + lambda I)^-1 X'Y = X'(XX' + lambda I)^-1 Y over the
support features X; a query scores alpha x W + beta; lambda, alpha and beta are learned with the
encoder.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.func import grad, jvp

from raymtl.learners.base import AmortisedLearner, Objective
from raymtl.learners.classes import below_shown, features_of, members, needs_linear_heads
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, Task


class R2D2(AmortisedLearner):
    """Replaces every head by the ridge regression on the support features, solved in closed form.

    Y is one-hot for a classification. For a regression, which has one output, it is the target in
    the unit of the predictions. X has a constant feature 1 beside the others, and its weight is
    penalised like theirs. The d x d form is solved if there are at least as many support examples
    as features, otherwise the N x N form. Each task has its own lambda, alpha and beta, while the
    paper has one task. lambda starts at `ridge` and is learned as its logarithm. alpha starts at
    `scale` for a classification and at 1 for a regression; beta starts at 0. A class that is absent
    from the support set scores 10 nats less than the least likely class that is present.

    The target of a regression is derived from the objective: it is the prediction with the least
    loss of the example, found by one Newton step from 0. This is exact for squared errors. A task
    whose weight in the objective is 0 has no target, and its head is the constant beta.

    Example: `learner: {name: r2d2, ridge: 0.1}`
    """

    name: Literal["r2d2"] = "r2d2"
    helps: ClassVar[str] = (
        "examples are few and tasks of any kind; adapting takes one forward pass and one solve"
    )
    costs: ClassVar[str] = (
        "one gradient, of support and query together, and a solve of size min(d + 1, N)"
    )
    ridge: PositiveFloat = 1.0
    scale: Annotated[float, Field(gt=0, le=1000)] = 10.0

    def check(self, tasks: Sequence[Task]) -> str | None:
        for task in tasks:
            if not task.kind.has_class_logits and not (task.quadratic and task.out_features == 1):
                reason = "it solves for classes and for numbers under squared error"
                return f"{reason}, and task '{task.name}' has others{task.kind.classes_hint}"
        return needs_linear_heads(tasks)

    def init_params(self, model_params: Params, generator: torch.Generator) -> Params:
        own: dict[str, Tensor] = {}
        for name, weight in model_params.items():
            if name.startswith("heads.") and name.endswith(".weight"):
                task = name.split(".")[1]
                own[f"log_ridge.{task}"] = weight.new_tensor(self.ridge).log()
                is_regression = len(weight) == 1
                own[f"scale.{task}"] = weight.new_tensor(1.0 if is_regression else self.scale)
                own[f"bias.{task}"] = weight.new_tensor(0.0)
        return own

    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        solved: dict[str, Tensor] = {}
        features = features_of(model, params, support.inputs)
        wanted = _regression_targets(model, params, support, objective, features)
        for name, x in features.items():
            x = _with_constant(x)
            if name in wanted:
                y = wanted[name]
            else:
                y = members(support, name, model.out_features[name], x)
                solved[f"learner.present.{name}"] = y.any(0)
            if name in support.masks:
                x, y = (torch.where(support.masks[name][:, None], of, 0.0) for of in (x, y))
            if x.shape[1] <= x.shape[0]:
                solve = primal
            else:
                solve = woodbury
            with torch.autocast(x.device.type, enabled=False):
                head = solve(x, y, params[f"learner.log_ridge.{name}"].exp())
            # A solution comes by columns, a saved tensor by rows, and products of the two differ in
            # the last bit.
            solved[f"learner.head.{name}"] = head.contiguous()
        return {**params, **solved}

    def predict(
        self, model: SharingArchitecture, params: Params, inputs: Tensor | Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        predictions = {}
        for name, x in features_of(model, params, inputs).items():
            with torch.autocast(x.device.type, enabled=False):
                scores = _with_constant(x) @ params[f"learner.head.{name}"]
            scores = params[f"learner.scale.{name}"] * scores + params[f"learner.bias.{name}"]
            present = params.get(f"learner.present.{name}")
            if present is None:
                predictions[name] = scores
            else:
                predictions[name] = below_shown(scores, present)
        return predictions


def primal(x: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
    """(X'X + ridge I)^-1 X'Y; x [N, d], y [N, C], a scalar -> [d, C]."""
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weights: Tensor = torch.linalg.solve(x.T @ x + ridge * identity, x.T @ y)
    return weights


def woodbury(x: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
    """X'(XX' + ridge I)^-1 Y, the same through an N x N system."""
    identity = torch.eye(x.shape[0], dtype=x.dtype, device=x.device)
    weights: Tensor = x.T @ torch.linalg.solve(x @ x.T + ridge * identity, y)
    return weights


def _with_constant(features: Tensor) -> Tensor:
    """[N, d] -> [N, d + 1], the last of them 1."""
    return torch.cat([features, torch.ones_like(features[:, :1])], dim=1)


def _regression_targets(
    model: SharingArchitecture,
    params: Params,
    support: Batch,
    objective: Objective,
    features: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The prediction of least loss for each regression and example, [N, 1]; 0 without a label."""
    at: dict[str, Tensor] = {}
    for name, num_outputs in model.out_features.items():
        at[name] = features[name].new_zeros(len(features[name]), num_outputs)
    free = {name: zeros for name, zeros in at.items() if model.out_features[name] == 1}
    if not free:
        return {}
    fixed = {name: value.detach() for name, value in params.items()}
    slope = grad(lambda predictions: objective(fixed, {**at, **predictions}, support))
    ones = {name: torch.ones_like(zeros) for name, zeros in free.items()}
    # Both from one call: a weighting may draw its weights anew in every one.
    slopes, curvatures = jvp(slope, (free,), (ones,))[:2]
    return {
        name: torch.where(curvatures[name] != 0, -slopes[name] / curvatures[name], 0.0).detach()
        for name in free
    }
