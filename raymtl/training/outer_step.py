"""Moves the parameters along the meta-gradient: the outer optimiser and its schedule."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.modes import Mode
from raymtl.step.algorithm import Algorithm
from raymtl.step.meta_gradient import MetaGradient
from raymtl.types import DivergedError


def make_optimizer(
    experiment: Experiment, algorithm: Algorithm, params: Mapping[str, Tensor]
) -> torch.optim.Optimizer:
    """The outer optimiser, with a group for each parameter.

    Weight decay acts on the model's matrices alone, and the architecture may scale the learning
    rate of each of its parts.
    """
    groups = []
    for name, value in params.items():
        room, *inner = name.split(".")
        scale, decay = 1.0, 0.0
        if room == "model":
            scale = algorithm.model.lr_scale.get(inner[0], 1.0)
        if room == "model" and value.ndim > 1:
            decay = experiment.train.weight_decay
        groups.append({"params": [value], "lr_scale": scale, "weight_decay": decay})
    # Without momentum, as here, the decay of SGD is decoupled too.
    if experiment.train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=experiment.train.lr)
    return torch.optim.AdamW(groups, lr=experiment.train.lr)


def learning_rate(experiment: Experiment, step: int) -> float:
    """The outer learning rate of a step of this stage."""
    done = step / experiment.train.steps
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return experiment.train.lr * factor[experiment.train.schedule]


def select_moving(
    algorithm: Algorithm, params: Mapping[str, Tensor], mode: Mode, step: int, meta: MetaGradient
) -> dict[str, Tensor]:
    """The parameters that this step moves."""
    resting = _resting_heads(algorithm, meta)
    return {
        name: value
        for name, value in params.items()
        if mode.moves(step, name) and algorithm.learner.moves(step, name) and name not in resting
    }


def _resting_heads(algorithm: Algorithm, meta: MetaGradient) -> set[str]:
    """Parameters of heads whose task had no label, and which no other loss reached.

    The optimiser's momentum must not move them.
    """
    labelled = meta.tasks.tolist()
    absent = [task.name for i, task in enumerate(algorithm.tasks) if i not in labelled]
    starts = tuple(f"model.heads.{name}." for name in absent)
    return {
        name
        for name, gradient in meta.grads.items()
        if name.startswith(starts) and not gradient.any()
    }


def move(
    optimizer: torch.optim.Optimizer,
    params: Mapping[str, Tensor],
    meta: MetaGradient,
    lr: float,
    clip_norm: float | None,
) -> float:
    """Makes one step of the optimiser; returns the norm of the meta-gradient before clipping.

    Raises DivergedError where the norm is not finite.
    """
    optimizer.zero_grad()
    for name, value in params.items():
        value.grad = meta.grads[name]
    norm = float(torch.nn.utils.clip_grad_norm_(list(params.values()), clip_norm or math.inf))
    if not math.isfinite(norm):
        raise DivergedError(f"the norm of the meta-gradient is {norm}")
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    optimizer.step()
    return norm
