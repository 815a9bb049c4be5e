"""Moves the parameters along the meta-gradient: the outer optimiser and its schedule."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from raymtl.config import Experiment
from raymtl.internals.torch import eager_optimizer
from raymtl.modes import Mode
from raymtl.step.algorithm import Algorithm
from raymtl.step.meta_gradient import MetaGradient
from raymtl.types import DivergedError, prefixed


def make_optimizer(
    experiment: Experiment, algorithm: Algorithm, params: Mapping[str, Tensor]
) -> torch.optim.Optimizer:
    """The outer optimiser, with a group for each scale of the learning rate and each decay.

    Weight decay acts on the model's matrices alone, but for those that `train.no_decay` names. The
    architecture may scale the learning rate of each of its parts, and the encoder that of each of
    its stages.
    """
    train = experiment.train
    scales = prefixed(algorithm.model.learning_rate_scales(), "model")
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, value in params.items():
        scale, decay = scales.get(name, 1.0), 0.0
        is_models = name.startswith("model.")
        if is_models and value.ndim > 1 and not _is_exempt(name, train.no_decay):
            decay = train.weight_decay
        groups.setdefault((scale, decay), []).append(value)
    settings = [
        {"params": values, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), values in groups.items()
    ]
    # One call moves all parameters of a group; those without a gradient rest.
    # Without momentum, as here, the decay of SGD is decoupled too.
    if train.optimizer == "sgd":
        return eager_optimizer(torch.optim.SGD, settings, lr=train.lr, fused=True)
    betas = train.betas
    return eager_optimizer(torch.optim.AdamW, settings, lr=train.lr, betas=betas, fused=True)


def _is_exempt(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns matches a parameter's name within the model."""
    return any(fnmatchcase(name.removeprefix("model."), pattern) for pattern in patterns)


def optimizer_state(
    optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """What the optimiser holds of each parameter that it has moved, by the parameter's name."""
    held = {name: optimizer.state.get(value) for name, value in params.items()}
    return {name: state for name, state in held.items() if state}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor], saved: Mapping[str, Any]
) -> None:
    """Puts what `optimizer_state` gave into an optimiser of the same parameters.

    Also takes what version 0.1.0 saved: the state_dict of an optimiser that had a group for each
    parameter, in the order of the parameters. Raises KeyError for a parameter that is not here.
    """
    by_name: Mapping[str, Any] = saved
    if "param_groups" in saved:
        by_name = {name: saved["state"][i] for i, name in enumerate(params) if i in saved["state"]}
    order = [value for group in optimizer.param_groups for value in group["params"]]
    numbers = {id(value): number for number, value in enumerate(order)}
    state = {numbers[id(params[name])]: held for name, held in by_name.items()}
    layout = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": layout})


def learning_rate(experiment: Experiment, step: int) -> float:
    """The outer learning rate of a step of this stage."""
    done = step / experiment.train.steps
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    warm = min(1.0, (step + 1) / max(experiment.train.warmup_steps, 1))
    return experiment.train.lr * warm * factor[experiment.train.schedule]


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
    total = get_total_norm([meta.grads[name] for name in params], foreach=True)
    norm = float(total)
    if not math.isfinite(norm):
        raise DivergedError(f"the norm of the meta-gradient is {norm}")
    if clip_norm is not None and norm > clip_norm:
        clip_grads_with_norm_(params.values(), clip_norm, total, foreach=True)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    optimizer.step()
    return norm
