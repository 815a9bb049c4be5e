"""UMTL, the unified framework: task encoder, task embedding, attention meta-learner, task-specific
learners.

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
from raymtl.learners.inner import Rates, UnrolledLearner
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

    A set encoder makes an embedding z [dim] of the labelled support examples of each task; its
    inputs are the features that the head would read, so that it works with any encoder and
    architecture. The tasks of an episode attend to each other and to `num_prototypes` learned
    vectors, which gives e_t; with `attends: batch` in training also to the embeddings of all
    episodes of the step, as constants. At test time an episode stands alone.

    From e are emitted, by linear maps that start at zero, so that training starts as maml: the
    *initial weights*, theta with every unit's weights times 1 + g and its bias shifted (`initial:
    gate`), or plus a product of rank `rank` (`low_rank`), or as it is (`theta`); the *rates*, one
    for each tensor and inner step, within a factor exp(2) of learned ones (`emit_rates`); and the
    *loss weights* of the tasks in the inner loop, which sum to their number and multiply those of
    the weighting (`emit_loss_weights`). A head follows the e of its own task, all else the mean
    over the tasks with labels. Steps after `inner_steps` take the rates of the last.

    `reconstruction` is xi: the decoder D tells the pooled features, the mean and mean square of the
    labels, and the correlations of features with labels in the set from z; the error is a mean over
    coordinates and over tasks, of features that are held constant: it trains the encoder and the
    decoder, and never the model.

    Before outer step `first_phase` the encoder and the meta-learner (attention, memory, emitters)
    move while the task-specific learners, that is theta and the learned rates, rest. After it these
    move too or, with `second_phase: learners`, they alone.
    """

    name: Literal["umtl"] = "umtl"
    helps: ClassVar[str] = (
        "tasks are of several families, to which no single initialisation is near"
    )
    costs: ClassVar[str] = (
        "as maml, and two or three passes of a small encoder over the support set"
    )
    dim: PositiveInt = 128
    """Of the embeddings."""
    hidden: PositiveInt = 32
    """Width of the encoder, the decoder, the attention, the prototypes and e."""
    heads: PositiveInt = 4
    num_prototypes: NonNegativeInt = 16
    attends: Literal["memory", "batch"] = "memory"
    initial: Literal["gate", "low_rank", "theta"] = "gate"
    rank: PositiveInt = 2
    emit_rates: bool = True
    emit_loss_weights: bool = True
    reconstruction: NonNegativeFloat = 10.0
    first_phase: NonNegativeInt = 100
    second_phase: Literal["all", "learners"] = "all"

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
        for part in ("query", "key", "value", "output"):
            own[f"attention.{part}"] = random_matrix(generator, self.hidden, self.hidden, like)
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
            known = torch.stack([its.known.any() for its in pairs.values()])
            return (
                self.reconstruction
                * torch.where(known, errors, 0.0).sum()
                / known.sum().clamp(min=1)
            )

    def rates(self, params: Params, step: int) -> Rates:
        at = min(step, self.inner_steps - 1)
        return {
            f"model.{name}": log[at].exp()
            for name, log in select(params, f"{EMITTED}.log_inner_lr").items()
        }

    @property
    def uses_support(self) -> bool:
        # it is read off the support set what to begin with, whatever the number of inner steps
        return True

    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        def weighed(given: Params, predictions: Mapping[str, Tensor], batch: Batch) -> Tensor:
            """The objective with the emitted weights: it is shown the labels of one task at a time."""
            names = list(batch.targets)
            of_each = torch.eye(
                len(names), dtype=torch.bool, device=next(iter(predictions.values())).device
            )

            def of_one(shown: Tensor) -> Tensor:
                known = {
                    name: batch.masks[name] & shown[i]
                    if name in batch.masks
                    else shown[i].expand(len(target))
                    for i, (name, target) in enumerate(batch.targets.items())
                }
                return objective(given, predictions, batch._replace(masks=known))

            weights = given[f"{EMITTED}.loss_weights"][
                [model.task_names.index(name) for name in names]
            ]
            return weights @ vmap(of_one)(of_each)

        given = {**params, **self._emitted(model, params, support)}
        adapted = super().adapt(
            model, given, support, weighed if self.emit_loss_weights else objective, steps
        )
        return {name: adapted[name] for name in params}

    def _embedded(
        self, model: SharingArchitecture, params: Params, support: Batch
    ) -> tuple[Tensor, Tensor]:
        """z of each task, [K, dim], and whether the support set has a label of it at all, [K]."""
        own, pairs = select(params, "learner"), support_pairs(model, params, support)
        none, no = own["seed"].new_zeros(self.dim), own["seed"].new_zeros((), dtype=torch.bool)
        with torch.autocast(none.device.type, enabled=False):
            z = {name: embedding(own, name, its, self.heads) for name, its in pairs.items()}
        known = {name: its.known.any() for name, its in pairs.items()}
        rows = [(z.get(name, none), known.get(name, no)) for name in model.task_names]
        return torch.stack([row for row, _ in rows]), torch.stack([there for _, there in rows])

    def _contexts(self, params: Params, u: Tensor, known: Tensor, others: Tensor) -> Tensor:
        """e [K, hidden] of tasks that attend to those of them that are `known`, and to `others` [M,
        hidden].
        """
        own = select(params, "learner.attention")
        tokens, there = torch.cat([u, others]), torch.cat([known, known.new_ones(len(others))])
        query = (u @ own["query"].T).unflatten(-1, (self.heads, -1))
        key, value = (
            (tokens @ own[part].T).unflatten(-1, (self.heads, -1)) for part in ("key", "value")
        )
        scores = torch.einsum("khd,mhd->hkm", query, key) / query.shape[-1] ** 0.5
        attention = torch.where(there, scores, torch.finfo(scores.dtype).min).softmax(-1)
        return u + torch.einsum("hkm,mhd->khd", attention, value).flatten(1) @ own["output"].T

    def _emitted(
        self, model: SharingArchitecture, params: Params, support: Batch
    ) -> dict[str, Tensor]:
        """Initial weights and, below `EMITTED`, the logarithms of the rates and the loss weights of
        one support set.
        """
        z, known = self._embedded(model, params, support)
        own = select(params, "learner")
        emitted: dict[str, Tensor] = {}
        with torch.autocast(z.device.type, enabled=False):
            if self.uses_batch_context and BATCH_EMBEDDINGS in params:
                batch = [params[BATCH_EMBEDDINGS].flatten(0, -2) @ own["project"].T]
            else:
                batch = []
            e = self._contexts(
                params, z @ own["project"].T, known, torch.cat([own["prototypes"], *batch])
            )
            mean = torch.where(known[:, None], e, 0.0).sum(0) / known.sum().clamp(min=1)
            for name, theta in select(params, "model").items():
                first, *rest = name.split(".")
                if first == "heads":
                    of = e[model.task_names.index(rest[0])]
                else:
                    of = mean
                emitted[f"model.{name}"] = self._initial(own, name, theta, of)
                log = own[f"log_inner_lr.{name}"]
                if self.emit_rates:
                    emitted[f"{EMITTED}.log_inner_lr.{name}"] = (
                        log + RATE_RANGE * (own[f"rate.{name}"] @ of).tanh()
                    )
                else:
                    emitted[f"{EMITTED}.log_inner_lr.{name}"] = log
            if self.emit_loss_weights:
                logits = torch.where(known, e @ own["loss_weight"], torch.finfo(e.dtype).min)
                emitted[f"{EMITTED}.loss_weights"] = logits.softmax(0) * known.sum()
        return emitted

    def _initial(self, own: Params, name: str, theta: Tensor, e: Tensor) -> Tensor:
        """What the inner loop moves this tensor from."""
        if self.initial == "theta":
            return theta
        if theta.ndim <= 1:
            return theta + (own[f"shift.{name}"] @ e).view_as(theta)
        if self.initial == "gate":
            return theta * (1 + own[f"gate.{name}"] @ e).view(-1, *[1] * (theta.ndim - 1))
        left = (own[f"left.{name}"] @ e).view(-1, self.rank)
        return theta + (left @ own[f"right.{name}"]).view_as(theta)
