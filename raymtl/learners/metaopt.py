"""MetaOptNet (Lee et al., 2019, arXiv:1904.03758).

The head is the multi-class SVM (Crammer & Singer) on the support features X with one-hot labels Y:
min_W 1/2 |W|^2 + C sum_n max_k (1 - Y_nk - x_n . (w_y - w_k)). Its dual has W = C X'(Y - P) with
the rows of P in the simplex and P = argmin C/2 tr((Y - P)' XX' (Y - P)) + tr(Y' P). A query scores
gamma x W.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from raymtl.learners.base import AmortisedLearner, Objective
from raymtl.learners.classes import (
    below_shown,
    features_of,
    members,
    needs_classes,
    needs_linear_heads,
)
from raymtl.learners.r2d2 import woodbury
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, Task

CENTRAL = 1e-5


class MetaOpt(AmortisedLearner):
    """Replaces every head by a convex classifier of the support features, an SVM or a ridge
    regression.

    `cost` is the constant C in the equation above. `head: ridge` minimises 1/2 |W|^2 + C/2 |X W -
    Y|^2, which is r2d2 with a fixed lambda = 1 / C and without a constant feature. Each task learns
    its gamma, which starts at `scale`. Classes that are absent from the support set take no part,
    and score 10 nats less than the least likely class that is present.

    Deviations from the paper: the dual is solved by an interior-point method written for it, in
    `iterations` Newton steps, each of which solves one system of size N for each class. The
    products P_nk Z_nk, Z being the multipliers of P >= 0, end at 1e-5 instead of 0. So W is a
    smooth function of the features, and its loss exceeds the least one by at most N times the
    number of classes times 1e-5 C. The gradient is the implicit one at that point, computed by one
    more Newton step.

    Example: `learner: {name: metaopt, head: ridge, cost: 1.0}`
    """

    name: Literal["metaopt"] = "metaopt"
    helps: ClassVar[str] = "classes are new and of more than one example, and features many"
    costs: ClassVar[str] = (
        "one gradient, of support and query together, and 20 solves of size N for each class"
    )
    head: Literal["svm", "ridge"] = "svm"
    cost: PositiveFloat = 0.1
    scale: Annotated[float, Field(gt=0, le=1000)] = 10.0
    iterations: PositiveInt = 20

    def check(self, tasks: Sequence[Task]) -> str | None:
        return needs_classes(tasks, "it parts classes from each other") or needs_linear_heads(tasks)

    def init_params(self, model_params: Params, generator: torch.Generator) -> Params:
        return {
            f"scale.{name.split('.')[1]}": weight.new_tensor(self.scale)
            for name, weight in model_params.items()
            if name.startswith("heads.") and name.endswith(".weight")
        }

    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        solved: dict[str, Tensor] = {}
        for name, x in features_of(model, params, support.inputs).items():
            y = members(support, name, model.out_features[name], x)
            x = torch.where(y.any(1)[:, None], x, 0.0)
            with torch.autocast(x.device.type, enabled=False):
                if self.head == "ridge":
                    head = woodbury(x, y, x.new_tensor(1 / self.cost))
                else:
                    head = self.cost * x.T @ (y - dual(x @ x.T, y, self.cost, self.iterations))
            # A solution comes by columns, a saved tensor by rows, and products of the two differ in
            # the last bit.
            solved[f"learner.head.{name}"] = head.contiguous()
            solved[f"learner.present.{name}"] = y.any(0)
        return {**params, **solved}

    def predict(
        self, model: SharingArchitecture, params: Params, inputs: Tensor | Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        logits = {}
        for name, x in features_of(model, params, inputs).items():
            with torch.autocast(x.device.type, enabled=False):
                scores = params[f"learner.scale.{name}"] * (x @ params[f"learner.head.{name}"])
            logits[name] = below_shown(scores, params[f"learner.present.{name}"])
        return logits


class Point(NamedTuple):
    """An iterate of the interior-point method."""

    p: Tensor
    """P, [N, K], positive."""
    z: Tensor
    """The multipliers Z of P >= 0, [N, K], positive."""
    row: Tensor
    """The multipliers of P 1 = 1, [N]."""


def dual(gram: Tensor, y: Tensor, cost: float, iterations: int) -> Tensor:
    """P [N, K] of the SVM with these inner products [N, N] and labels [N, K]; 0 for classes that y
    does not show.
    """
    present = y.any(0)
    present = (
        present | ~present.any()
    )  # without any label every P is a solution, and all give the head 0
    at = Point(
        torch.where(present, 1 / present.sum(), 1.0).expand_as(y).to(y),
        torch.ones_like(y),
        torch.zeros_like(y[:, 0]),
    )
    problem = _Dual(gram.detach(), y, cost, present)
    for _ in range(iterations):
        gap = torch.where(present, at.p * at.z, 0.0).sum() / (len(y) * present.sum())
        step = _newton(problem, problem.gram, at, (gap / 10).clamp(min=CENTRAL))
        at = Point(
            at.p + _inside(at.p, step.p) * step.p,
            at.z + _inside(at.z, step.z) * step.z,
            at.row + _inside(at.z, step.z) * step.row,
        )
    # Its value is 0, for the equations hold; its gradient is that of their solution.
    step = _newton(problem, gram, at, torch.full_like(gap, CENTRAL))
    return torch.where(present, at.p + step.p, 0.0)


class _Dual(NamedTuple):
    """The dual of the SVM, without a gradient."""

    gram: Tensor
    """Inner products of the support features, [N, N]."""
    y: Tensor
    """One-hot labels, [N, K]."""
    cost: float
    present: Tensor
    """Which classes take part, [K]."""


def _newton(dual: _Dual, gram: Tensor, at: Point, centre: Tensor) -> Point:
    """The step to C gram (P - Y) + Y - Z - row = 0, P 1 = 1 and P Z = centre.

    These are linear in the step but for P Z. `gram` has the values of `dual.gram`. Only the first
    equation follows its gradient; the matrices are those of `dual.gram`.
    """
    _, y, cost, present = dual
    p = torch.where(present, at.p, 0.0)
    force = cost * gram @ (p - y) + y - at.z - at.row[:, None]
    rest = at.z - centre / at.p
    # One N x N matrix for each class, not one of all N K unknowns: rows couple classes by their
    # sums alone.
    inverse = torch.linalg.inv(cost * dual.gram + torch.diag_embed((at.z / at.p).T))  # [K, N, N]
    inverse = torch.where(present[:, None, None], inverse, 0.0)
    free = torch.einsum("knm,mk->nk", inverse, -force - rest)
    row = torch.linalg.solve(inverse.sum(0), 1 - p.sum(1) - free.sum(1))
    dp = free + torch.einsum("knm,m->nk", inverse, row)
    return Point(dp, torch.where(present, -rest - at.z / at.p * dp, 0.0), row)


def _inside(value: Tensor, step: Tensor) -> Tensor:
    """How much of the step, at most all, keeps the values positive."""
    return (0.99 * torch.where(step < 0, -value / step, torch.inf).amin()).clamp(max=1.0)
