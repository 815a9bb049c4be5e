"""UMTL, the unified framework: task encoder, embedding, attention meta-learner, task learners.

z_t = the encoded support set of task t, u_t = P z_t; e_t = u_t + its attention to the u of the
tasks at hand and to a memory of prototypes; phi_0 = theta gated by e, alpha_j = exp(rho_j + 2
tanh(A_j e)), omega = K softmax(w . e_t); phi_{j+1} = phi_j - alpha_j grad sum_t omega_t L_t(phi_j);
min L_Q(phi_k) + xi |D(z) - pooled support set|^2.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from raymtl.learners.base import BATCH_EMBEDDINGS, Objective
from raymtl.learners.classes import needs_linear_heads
from raymtl.learners.gradient import UnrolledLearner
from raymtl.learners.inner import Rates
from raymtl.learners.task_encoder import (
    embedding,
    encoder_params,
    random_matrix,
    reconstruction_error,
    support_pairs,
)
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, Task, UserError, select

RATE_RANGE = 2.0  # nats that an emitted rate is at most off the learned one
EMITTED = "learner.emitted"


class UMTL(UnrolledLearner):
    """Reads off the support set what a task is like, and emits the initial weights and inner rates
    that suit it.

    A set encoder embeds the labelled support examples of each task. The embeddings attend to each
    other and to learned prototypes. Linear maps of the result, which start at zero, emit the
    initial weights, the inner rates and the loss weights of the inner loop, so that training starts
    as maml. Training has two phases. docs/umtl.md shows how the data flows.

    Example: `learner: {name: umtl, attends: batch, first_phase: 50}`
    """

    name: Literal["umtl"] = "umtl"
    helps: ClassVar[str] = (
        "tasks are of several families, to which no single initialisation is near"
    )
    costs: ClassVar[str] = (
        "as maml, and two or three passes of a small encoder over the support set"
    )
    dim: PositiveInt = 128
    """Width of the embeddings z."""
    hidden: PositiveInt = 32
    """Width of the encoder, the decoder, the attention, the prototypes and e."""
    heads: PositiveInt = 4
    """Attention heads, which divide `hidden`."""
    num_prototypes: NonNegativeInt = 16
    """Learned vectors that every task attends to."""
    attends: Literal["memory", "batch"] = "memory"
    """With "batch" training also attends to the embeddings of all episodes of the step, as
    constants.
    """
    initial: Literal["gate", "low_rank", "theta"] = "gate"
    """How e changes theta: "gate" multiplies the weights of each unit by 1 + g and shifts its bias,
    "low_rank" adds a product of rank `rank`, "theta" leaves it as it is.
    """
    rank: PositiveInt = 2
    """Rank of the change with `initial: low_rank`."""
    emit_rates: bool = True
    """Whether e scales the learned rate of each tensor and step, by a factor up to exp(2)."""
    emit_loss_weights: bool = True
    """Whether e weighs the tasks in the inner loop, on top of the weighting."""
    reconstruction: NonNegativeFloat = 10.0
    """xi, the weight of the reconstruction error, which trains encoder and decoder alone."""
    first_phase: NonNegativeInt = 100
    """The outer step before which theta and the learned rates rest."""
    second_phase: Literal["all", "learners"] = "all"
    """What moves afterwards: all, or theta and the learned rates alone."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hidden % self.heads:
            raise UserError(
                f"learner.hidden: expected a multiple of learner.heads: {self.heads}, got "
                f"{self.hidden}. Change either."
            )
        return self

    @property
    def uses_batch_context(self) -> bool:
        return self.attends == "batch"

    def check(self, tasks: Sequence[Task]) -> str | None:
        for task in tasks:
            if task.encode_target is None:
                return f"it reads labels, and those of task '{task.name}' have no encoding"
        return needs_linear_heads(tasks)

    def init_params(self, model_params: Params, generator: torch.Generator) -> Params:
        like = next(iter(model_params.values()))
        heads = {
            name.split(".")[1]: w
            for name, w in model_params.items()
            if name.startswith("heads.") and w.ndim == 2
        }
        widths = {task: (weight.shape[1], weight.shape[0]) for task, weight in heads.items()}
        own = encoder_params(widths, self.dim, self.hidden, generator, like)
        own["project"] = random_matrix(generator, self.hidden, self.dim, like)
        for layer in ("query", "key", "value", "output"):
            own[f"attention.{layer}"] = random_matrix(generator, self.hidden, self.hidden, like)
        own["prototypes"] = torch.randn(self.num_prototypes, self.hidden, generator=generator).to(
            like
        )
        steps = max(self.inner_steps, 1)
        for name, theta in model_params.items():
            own[f"log_inner_lr.{name}"] = like.new_full((steps,), self.inner_lr).log()
            if self.emit_rates:
                own[f"rate.{name}"] = like.new_zeros(steps, self.hidden)
            if self.initial != "theta" and theta.ndim <= 1:
                own[f"shift.{name}"] = like.new_zeros(theta.numel(), self.hidden)
            elif self.initial == "gate":
                own[f"gate.{name}"] = like.new_zeros(len(theta), self.hidden)
            elif self.initial == "low_rank":
                own[f"left.{name}"] = like.new_zeros(len(theta) * self.rank, self.hidden)
                own[f"right.{name}"] = random_matrix(generator, self.rank, theta[0].numel(), like)
        if self.emit_loss_weights:
            own["loss_weight"] = like.new_zeros(self.hidden)
        return own

    def moves(self, step: int, parameter: str) -> bool:
        if parameter.startswith("weighting."):
            return True
        if parameter.startswith(("model.", "learner.log_inner_lr.")):
            return step >= self.first_phase
        return step < self.first_phase or self.second_phase == "all"

    def embed(self, model: SharingArchitecture, params: Params, support: Batch) -> Tensor:
        z, _ = self._embedded(model, params, support)
        return z

    def relations(self, params: Params, embeddings: Tensor) -> Tensor:
        """Cosine similarities of the tasks' e, each as it is alone with the memory: 1 on the
        diagonal.
        """
        alone = embeddings.new_ones(1, dtype=torch.bool)
        u, memory = embeddings @ params["learner.project"].T, params["learner.prototypes"]
        e = vmap(lambda own: self._contexts(params, own[None], alone, memory)[0])(u)
        directions = F.normalize(e, dim=-1)
        return directions @ directions.T

    def auxiliary(
        self, model: SharingArchitecture, params: Params, support: Batch
    ) -> Tensor | None:
        if not self.reconstruction:
            return None
        # The model must not make its features easy to reconstruct.
        fixed = {name: value.detach() for name, value in params.items()}
        own, pairs = select(params, "learner"), support_pairs(model, fixed, support)
        with torch.autocast(own["seed"].device.type, enabled=False):
            z = {name: embedding(own, name, its, self.heads) for name, its in pairs.items()}
            errors = torch.stack(
                [reconstruction_error(own, name, its, z[name]) for name, its in pairs.items()]
            )
            has_labels = torch.stack([its.labelled.any() for its in pairs.values()])
            return (
                self.reconstruction
                * torch.where(has_labels, errors, 0.0).sum()
                / has_labels.sum().clamp(min=1)
            )

    def rates(self, params: Params, step: int) -> Rates:
        at = min(step, self.inner_steps - 1)
        return {
            f"model.{name}": log[at].exp()
            for name, log in select(params, f"{EMITTED}.log_inner_lr").items()
        }

    @property
    def uses_support(self) -> bool:
        return True  # without inner steps too: the initial weights depend on the support set

    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        if self.emit_loss_weights:
            objective = _weighted(objective, model.task_names)
        given = {**params, **self._emitted(model, params, support)}
        adapted = super().adapt(model, given, support, objective, steps)
        return {name: adapted[name] for name in params}

    def _embedded(
        self, model: SharingArchitecture, params: Params, support: Batch
    ) -> tuple[Tensor, Tensor]:
        """z of each task, [K, dim], and whether the support set has any label of it, [K]."""
        own, pairs = select(params, "learner"), support_pairs(model, params, support)
        none, no = own["seed"].new_zeros(self.dim), own["seed"].new_zeros((), dtype=torch.bool)
        with torch.autocast(none.device.type, enabled=False):
            z = {name: embedding(own, name, its, self.heads) for name, its in pairs.items()}
        labelled = {name: its.labelled.any() for name, its in pairs.items()}
        embeddings = [z.get(name, none) for name in model.task_names]
        has_labels = [labelled.get(name, no) for name in model.task_names]
        return torch.stack(embeddings), torch.stack(has_labels)

    def _contexts(self, params: Params, u: Tensor, has_labels: Tensor, others: Tensor) -> Tensor:
        """e [K, hidden] of tasks that attend to each other and to `others` [M, hidden].

        Tasks without labels are not attended to.
        """
        own = select(params, "learner.attention")
        tokens = torch.cat([u, others])
        is_token = torch.cat([has_labels, has_labels.new_ones(len(others))])
        query = (u @ own["query"].T).unflatten(-1, (self.heads, -1))
        key = (tokens @ own["key"].T).unflatten(-1, (self.heads, -1))
        value = (tokens @ own["value"].T).unflatten(-1, (self.heads, -1))
        scores = torch.einsum("khd,mhd->hkm", query, key) / query.shape[-1] ** 0.5
        attention = torch.where(is_token, scores, torch.finfo(scores.dtype).min).softmax(-1)
        return u + torch.einsum("hkm,mhd->khd", attention, value).flatten(1) @ own["output"].T

    def _emitted(
        self, model: SharingArchitecture, params: Params, support: Batch
    ) -> dict[str, Tensor]:
        """What is emitted from one support set.

        The initial weights and, below `EMITTED`, the logarithms of the rates and the loss weights.
        """
        z, has_labels = self._embedded(model, params, support)
        own = select(params, "learner")
        emitted: dict[str, Tensor] = {}
        with torch.autocast(z.device.type, enabled=False):
            if self.uses_batch_context and BATCH_EMBEDDINGS in params:
                batch = [params[BATCH_EMBEDDINGS].flatten(0, -2) @ own["project"].T]
            else:
                batch = []
            e = self._contexts(
                params, z @ own["project"].T, has_labels, torch.cat([own["prototypes"], *batch])
            )
            mean = torch.where(has_labels[:, None], e, 0.0).sum(0) / has_labels.sum().clamp(min=1)
            for name, theta in select(params, "model").items():
                first, *rest = name.split(".")
                if first == "heads":
                    context = e[model.task_names.index(rest[0])]
                else:
                    context = mean
                emitted[f"model.{name}"] = self._initial(own, name, theta, context)
                log_rates = own[f"log_inner_lr.{name}"]
                if self.emit_rates:
                    log_rates = log_rates + RATE_RANGE * (own[f"rate.{name}"] @ context).tanh()
                emitted[f"{EMITTED}.log_inner_lr.{name}"] = log_rates
            if self.emit_loss_weights:
                logits = torch.where(has_labels, e @ own["loss_weight"], torch.finfo(e.dtype).min)
                emitted[f"{EMITTED}.loss_weights"] = logits.softmax(0) * has_labels.sum()
        return emitted

    def _initial(self, own: Params, name: str, theta: Tensor, e: Tensor) -> Tensor:
        """Where the inner loop starts for this tensor."""
        if self.initial == "theta":
            return theta
        if theta.ndim <= 1:
            return theta + (own[f"shift.{name}"] @ e).view_as(theta)
        if self.initial == "gate":
            return theta * (1 + own[f"gate.{name}"] @ e).view(-1, *[1] * (theta.ndim - 1))
        left = (own[f"left.{name}"] @ e).view(-1, self.rank)
        return theta + (left @ own[f"right.{name}"]).view_as(theta)


def _weighted(objective: Objective, task_names: Sequence[str]) -> Objective:
    """The objective with the emitted loss weights, from the labels of one task at a time."""

    def weighted(given: Params, predictions: Mapping[str, Tensor], batch: Batch) -> Tensor:
        names = list(batch.targets)
        device = next(iter(predictions.values())).device

        def of_one(is_shown: Tensor) -> Tensor:
            masks = {}
            for shown, (name, target) in zip(is_shown, batch.targets.items(), strict=True):
                if name in batch.masks:
                    masks[name] = batch.masks[name] & shown
                else:
                    masks[name] = shown.expand(len(target))
            return objective(given, predictions, batch._replace(masks=masks))

        losses = vmap(of_one)(torch.eye(len(names), dtype=torch.bool, device=device))
        weights = given[f"{EMITTED}.loss_weights"]
        return weights[[task_names.index(name) for name in names]] @ losses

    return weighted
