"""A thousand regressions on one small network, each with a head of its own.

The trunk has two layers of 128 units; the batch has 256 examples, which all tasks share.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.ours import Ours
from benchmarks.peers.subject import Contest, Setting, Subject
from benchmarks.peers.timing import Way
from raymtl.encoders import MLPSpec
from raymtl.learners import MAML
from raymtl.sharing import HardSpec
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import stacks
from raymtl.tasks import regression
from raymtl.training.fastest import Way as TaskWay
from raymtl.types import Batch, Episode
from raymtl.weighting.pcgrad import PCGradSpec
from raymtl.weighting.static import StaticSpec

NUM_TASKS = 1000
NUM_INPUTS = 16
NUM_EXAMPLES = 256


class Sizes(NamedTuple):
    """How many tasks, and whether their gradients are weighed."""

    num_tasks: int
    by_gradients: bool


def subjects() -> list[Subject]:
    """Fixed weights beside plain torch; PCGrad alone, for which other libraries take minutes."""
    static, pcgrad = (Sizes(NUM_TASKS, by_gradients) for by_gradients in (False, True))
    few = static._replace(num_tasks=3)
    return [
        Subject(
            f"{NUM_TASKS} tasks with fixed weights",
            "step",
            partial(contest, static),
            partial(gradients, few),
        ),
        Subject(f"{NUM_TASKS} tasks with pcgrad", "step", partial(contest, pcgrad)),
    ]


def contest(sizes: Sizes, setting: Setting) -> Contest:
    """raymtl's step and, for fixed weights, that of plain torch with a loop over the heads."""
    if setting.quick:
        sizes = sizes._replace(num_tasks=10)
    ours = _ours(sizes, setting.device)
    ways = {f"raymtl {axis}": ours.way(TaskWay(axis)) for axis in ("loop", "vmap")}
    if not setting.ours and not sizes.by_gradients:
        ways["torch, a loop over heads"] = Way(_torch(ours)[0])
    return Contest(ways, "raymtl vmap", None, [] if sizes.by_gradients else list(ways))


def gradients(sizes: Sizes, setting: Setting) -> dict[str, list[Tensor]]:
    """The gradients of the trunk by raymtl and by plain torch."""
    ours = _ours(sizes, setting.device)
    run, trunk = _torch(ours)
    run()
    expected = [value.grad for value in trunk.parameters() if value.grad is not None]
    return {"raymtl": ours.gradients()[: len(expected)], "torch": expected}


def _ours(sizes: Sizes, device: str) -> Ours:
    tasks = tuple(regression(f"t{number}", 0.0, 1.0) for number in range(sizes.num_tasks))
    model = HardSpec().build(tasks, [MLPSpec(hidden=(128, 128)).build((NUM_INPUTS,))])
    weighting = (PCGradSpec() if sizes.by_gradients else StaticSpec()).build(tasks)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, NUM_EXAMPLES, NUM_INPUTS, generator=generator)
    targets = inputs @ torch.randn(NUM_INPUTS, sizes.num_tasks, generator=generator)
    each = {task.name: targets[..., number] for number, task in enumerate(tasks)}
    batch = Batch(inputs, each, {})
    algorithm = Algorithm(tasks, model, weighting, MAML(inner_steps=0))
    return Ours(algorithm, Episode(batch, batch), device)


def _torch(ours: Ours) -> tuple[Callable[[], None], nn.Module]:
    """A step of plain torch with the same parameters, and its trunk."""
    batch = stacks(ours.episodes)[0].query
    assert isinstance(batch.inputs, Tensor)
    values = list(ours.model().values())
    trunk = nn.Sequential(nn.Linear(NUM_INPUTS, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()).to(
        ours.device
    )
    heads = nn.ModuleList(nn.Linear(128, 1) for _ in batch.targets).to(ours.device)
    with torch.no_grad():
        for own, value in zip([*trunk.parameters(), *heads.parameters()], values, strict=True):
            own.copy_(value)
    inputs, targets = batch.inputs[0], [each[0, :, None] for each in batch.targets.values()]

    def step() -> None:
        trunk.zero_grad()
        heads.zero_grad()
        features = trunk(inputs)
        pairs = zip(heads, targets, strict=True)
        losses = [F.mse_loss(head(features), target) for head, target in pairs]
        torch.stack(losses).sum().backward()

    return step, trunk
