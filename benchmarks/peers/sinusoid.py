"""Sinusoids: MAML of a small network on 10 points, 25 tasks at a time and 1,000."""

from functools import partial

from torch import nn
from torch.nn import functional as F

from benchmarks.peers import few_shot
from benchmarks.peers.conv4 import SECOND_ORDER
from benchmarks.peers.few_shot import FewShot
from benchmarks.peers.loops import Plan
from benchmarks.peers.subject import Subject
from raymtl.training.fastest import Way


def subjects() -> list[Subject]:
    """One and five inner steps of second order."""
    found = []
    for num_tasks in (25, 1000):
        for steps in (1, 5):
            found.append(_subject(num_tasks, steps))
    return found


def _subject(num_tasks: int, steps: int) -> Subject:
    learned = FewShot(
        partial(_text, steps),
        num_tasks,
        _network,
        Plan(F.mse_loss, 0.02, steps),
        SECOND_ORDER,
        [Way("vmap")],
        graphs=("replay", "compile"),
        in_jax=True,
        repeat=max(1, 250 // num_tasks),
        peaks=(num_tasks, steps) == (1000, 5),
    )
    contest = partial(few_shot.contest, learned)
    name = f"sinusoid maml with {steps} step{'s' * (steps > 1)} on {num_tasks} tasks"
    return Subject(name, "task", contest, partial(few_shot.gradients, learned))


def _text(steps: int, num_tasks: int) -> str:
    return f"""
name: sinusoid
data: {{name: sinusoid, shots: 10, queries: 10}}
encoder: {{name: mlp, hidden: [40, 40]}}
learner: {{name: maml, inner_lr: 0.02, inner_steps: {steps}}}
train: {{meta_batch: {num_tasks}}}
"""


def _network() -> nn.Module:
    features = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU())
    return nn.Sequential(features, nn.Linear(40, 1))
