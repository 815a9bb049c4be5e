"""The outer optimiser: its groups, what rests, and what versions saved of it."""

import copy

import pytest
import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.step.algorithm import Algorithm
from raymtl.step.meta_gradient import MetaGradient
from raymtl.training.outer_step import (
    learning_rate,
    make_optimizer,
    move,
    optimizer_state,
    restore_optimizer,
)
from raymtl.types import UserError
from tests.conftest import axes

LR, DECAY = 0.01, 0.3
STEPS = 6


def stitched(optimizer: str) -> Experiment:
    """Of four groups: two scales of the learning rate, with and without weight decay."""
    return axes("cross_stitch", "uncertainty", "maml").override(
        {
            "train.optimizer": optimizer,
            "train.lr": LR,
            "train.weight_decay": DECAY,
            "sharing.lr_scale": 10.0,
        }
    )


def gradients(params: dict[str, Tensor], step: int) -> MetaGradient:
    generator = torch.Generator().manual_seed(step)
    drawn = {name: torch.randn(value.shape, generator=generator) for name, value in params.items()}
    none = torch.zeros(0)
    return MetaGradient(drawn, none, none, none)


def in_separate_groups(
    optimizer: str, algorithm: Algorithm, params: dict[str, Tensor]
) -> torch.optim.Optimizer:
    """The optimiser as version 0.1.0 made it: a group for each parameter."""
    groups = []
    for name, value in params.items():
        room, inner = name.split(".")[:2]
        scale = algorithm.model.lr_scale.get(inner, 1.0) if room == "model" else 1.0
        decay = DECAY if room == "model" and value.ndim > 1 else 0.0
        groups.append({"params": [value], "lr_scale": scale, "weight_decay": decay})
    if optimizer == "sgd":
        return torch.optim.SGD(groups, lr=LR)
    return torch.optim.AdamW(groups, lr=LR)


def resting(params: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """All but one other parameter in each step, and all but the first two in every one."""
    names = list(params)
    left_out = {*names[:2], names[2 + step % (len(names) - 2)]}
    return {name: value for name, value in params.items() if name not in left_out}


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_groups_move_as_single_parameters_do(optimizer: str, clip_norm: float | None) -> None:
    chosen = stitched(optimizer)
    algorithm = chosen.build()
    params = {n: v.detach().double() for n, v in algorithm.init_params().items()}
    expected = copy.deepcopy(params)
    grouped = make_optimizer(chosen, algorithm, params)
    single = in_separate_groups(optimizer, algorithm, expected)
    assert len(grouped.param_groups) < len(single.param_groups) == len(params)
    for step in range(STEPS):
        meta = gradients(params, step)
        meta = meta._replace(grads={name: g.double() for name, g in meta.grads.items()})
        moving = resting(params, step)
        for value in expected.values():
            value.grad = None
        for name in moving:
            expected[name].grad = meta.grads[name].clone()
        for group in single.param_groups:
            group["lr"] = LR * group["lr_scale"]
        norm = torch.nn.utils.clip_grad_norm_(
            [expected[name] for name in moving], clip_norm or float("inf")
        )
        single.step()
        assert move(grouped, moving, meta, LR, clip_norm) == pytest.approx(float(norm))
    for name, value in params.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14, msg=name)


def test_earlier_optimizer_states_go_on() -> None:
    chosen = stitched("adam")
    algorithm = chosen.build()
    params = {n: v.detach().clone() for n, v in algorithm.init_params().items()}
    earlier = in_separate_groups("adam", algorithm, params)
    for step in range(STEPS):
        for name in resting(params, step):
            params[name].grad = gradients(params, step).grads[name]
        earlier.step()
    now = make_optimizer(chosen, algorithm, params)
    restore_optimizer(now, params, copy.deepcopy(earlier.state_dict()))
    held = optimizer_state(now, params)
    moved = {name for name, value in params.items() if earlier.state.get(value)}
    assert held.keys() == moved and 0 < len(moved) < len(params)
    for name in moved:
        for key, value in earlier.state[params[name]].items():
            assert torch.equal(held[name][key], value), (name, key)
    assert {group["weight_decay"] for group in now.param_groups} == {0.0, DECAY}


def test_an_optimizer_goes_on_by_names() -> None:
    chosen = stitched("adam")
    algorithm = chosen.build()
    params = {n: v.detach().clone() for n, v in algorithm.init_params().items()}
    first = make_optimizer(chosen, algorithm, params)
    for step in range(STEPS):
        move(first, resting(params, step), gradients(params, step), LR, None)
    second = make_optimizer(chosen, algorithm, params)
    restore_optimizer(second, params, copy.deepcopy(optimizer_state(first, params)))
    copied = copy.deepcopy(params)
    move(first, params, gradients(params, STEPS), LR, None)
    after = {name: value.clone() for name, value in params.items()}
    for name, value in params.items():
        value.copy_(copied[name])
    move(second, params, gradients(params, STEPS), LR, None)
    assert all(torch.equal(after[name], value) for name, value in params.items())
    with pytest.raises(KeyError):
        restore_optimizer(second, params, {"model.absent": {}})


def test_betas_and_exempt_weights_are_those_of_adamw() -> None:
    betas = (0.7, 0.95)
    changes = {"train.betas": betas, "train.no_decay": ["heads.*"]}
    chosen = stitched("adam").override(changes)
    algorithm = chosen.build()
    params = {n: v.detach().double() for n, v in algorithm.init_params().items()}
    expected = copy.deepcopy(params)
    groups = []
    for name, value in expected.items():
        room, inner = name.split(".")[:2]
        scale = algorithm.model.lr_scale.get(inner, 1.0) if room == "model" else 1.0
        decays = room == "model" and inner != "heads" and value.ndim > 1
        decay = DECAY if decays else 0.0
        groups.append({"params": [value], "lr": LR * scale, "weight_decay": decay})
    plain = torch.optim.AdamW(groups, betas=betas)
    ours = make_optimizer(chosen, algorithm, params)
    for step in range(STEPS):
        grads = {name: g.double() for name, g in gradients(params, step).grads.items()}
        for name, value in expected.items():
            value.grad = grads[name].clone()
        plain.step()
        none = torch.zeros(0)
        move(ours, params, MetaGradient(grads, none, none, none), LR, None)
    for name, value in params.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_rate_warms_up_as_torchs_does(schedule: str) -> None:
    """`LinearLR` times the schedule that there is without it."""
    plain = stitched("sgd").override({"train.steps": 20, "train.schedule": schedule})
    warm = plain.override({"train.warmup_steps": 5})
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    warming = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 5, 1.0, total_iters=4)
    for step in range(20):
        factor = optimizer.param_groups[0]["lr"]
        assert learning_rate(warm, step) == pytest.approx(factor * learning_rate(plain, step))
        optimizer.step()
        warming.step()


def test_a_pattern_of_no_weight_is_refused() -> None:
    sentence = r"train.no_decay.1: expected a pattern of names .*, got 'head\.\*', which none has"
    with pytest.raises(UserError, match=sentence):
        stitched("adam").override({"train.no_decay": ["heads.*", "head.*"]})
