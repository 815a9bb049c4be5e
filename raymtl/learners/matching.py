"""Matching networks (Vinyals et al., 2016, arXiv:1606.04080).

p(y | x, S) = sum_i a_i y_i with a = softmax_i cos(f(x, S), g(x_i, S)). In full context g(x_i, S) =
h_i + h'_i + g(x_i) with the states h, h' of a bidirectional LSTM over the support set, and f(x, S)
the last of K reads: h_k = LSTM(f(x), [h_{k-1}, r_{k-1}]) + f(x), where r_k = sum_i softmax_i(h_k .
g(x_i, S)) g(x_i, S).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from raymtl.learners.base import AmortisedLearner, Objective
from raymtl.learners.classes import (
    below_shown,
    features_of,
    members,
    needs_classes,
    needs_linear_heads,
)
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, Task, select


class Matching(AmortisedLearner):
    """Predicts the label of a query from the labels of the support examples, each weighted by the
    softmax of its cosine similarity to the query.

    Predictions are log-probabilities, so that their cross-entropy is the loss of the paper. `scale`
    multiplies the similarities. Without it no probability comes near 0 or 1; the paper has 1. With
    `full_context` an LSTM lets the support examples depend on each other, in their order, and a
    second one lets a query read all of them `reads` times. Each task has its own LSTMs. They start
    at zero, where the learner equals plain matching networks. The heads of the model are not used.
    A class that is absent from the support set scores 10 nats less than the least likely class that
    is present.

    Example: `learner: {name: matching, full_context: true, reads: 3}`
    """

    name: Literal["matching"] = "matching"
    helps: ClassVar[str] = "classes are new and of several looks each, which one mean would blur"
    costs: ClassVar[str] = (
        "one gradient, of support and query together; in full context also LSTMs over the support"
    )
    full_context: bool = False
    reads: PositiveInt = 5
    scale: Annotated[float, Field(gt=0, le=40)] = 10.0

    def check(self, tasks: Sequence[Task]) -> str | None:
        reason = needs_classes(tasks, "a match gives a class")
        if reason is None and self.full_context:
            return needs_linear_heads(tasks)
        return reason

    def init_params(self, model_params: Params, generator: torch.Generator) -> Params:
        own: dict[str, Tensor] = {}
        for name, weight in model_params.items():
            if self.full_context and name.startswith("heads.") and name.endswith(".weight"):
                task, width = name.split(".")[1], weight.shape[1]
                for cell, remembered in (
                    ("forward", width),
                    ("backward", width),
                    ("read", 2 * width),
                ):
                    own[f"{cell}.{task}.input"] = weight.new_zeros(4 * width, width)
                    own[f"{cell}.{task}.hidden"] = weight.new_zeros(4 * width, remembered)
                    own[f"{cell}.{task}.bias"] = weight.new_zeros(4 * width)
        return own

    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        support_params: dict[str, Tensor] = {}
        for name, own in features_of(model, params, support.inputs).items():
            member = members(support, name, model.out_features[name], own)
            embedded = own
            if self.full_context:
                labelled = member.any(1)
                with torch.autocast(own.device.type, enabled=False):
                    for cell, order in (("forward", 1), ("backward", -1)):
                        embedded = embedded + _along(
                            select(params, f"learner.{cell}.{name}"), own, labelled, order
                        )
            # A copy: tasks may share their features, and a file holds no memory twice.
            support_params[f"learner.support.{name}"] = embedded.clone()
            support_params[f"learner.members.{name}"] = member
        return {**params, **support_params}

    def predict(
        self, model: SharingArchitecture, params: Params, inputs: Tensor | Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        predictions = {}
        for name, query in features_of(model, params, inputs).items():
            support, member = params[f"learner.support.{name}"], params[f"learner.members.{name}"]
            present = member.any(0)
            with torch.autocast(query.device.type, enabled=False):
                if self.full_context:
                    cell = select(params, f"learner.read.{name}")
                    query = _after_reading(cell, query, support, member.any(1), self.reads)
                cosines = F.normalize(query, dim=-1) @ F.normalize(support, dim=-1).T
                mass = (self.scale * cosines).exp() @ member  # [N, C]
            predictions[name] = below_shown(
                torch.where(present, mass, 1.0).log(), present
            ).log_softmax(-1)
        return predictions


def _lstm(cell: Params, x: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM on the last axis, its gates in the order of torch: its new output and
    memory.
    """
    gates = x @ cell["input"].T + hidden @ cell["hidden"].T + cell["bias"]
    admit, forget, content, emit = gates.chunk(4, -1)
    memory = forget.sigmoid() * memory + admit.sigmoid() * content.tanh()
    return emit.sigmoid() * memory.tanh(), memory


def _along(cell: Params, features: Tensor, labelled: Tensor, order: int) -> Tensor:
    """The outputs [N, d] of an LSTM over the labelled examples, first to last for `order` 1,
    backward for -1.
    """
    hidden = memory = features.new_zeros(features.shape[1])
    outputs = []
    for index in range(len(features))[::order]:
        new = _lstm(cell, features[index], hidden, memory)
        hidden, memory = (
            torch.where(labelled[index], after, before)
            for after, before in zip(new, (hidden, memory), strict=True)
        )
        outputs.append(hidden)
    return torch.stack(outputs[::order])


def _after_reading(
    cell: Params, query: Tensor, support: Tensor, labelled: Tensor, reads: int
) -> Tensor:
    """The queries [N, d] after so many reads of the labelled support examples, from h_0 = 0 on."""
    hidden = memory = torch.zeros_like(query)
    for _ in range(reads):
        # The lowest number and not -inf: a support set without any label would give no number at
        # all.
        scores = torch.where(labelled, hidden @ support.T, torch.finfo(query.dtype).min)
        read = scores.softmax(-1) @ support
        output, memory = _lstm(cell, query, torch.cat([hidden, read], -1), memory)
        hidden = output + query
    return hidden
