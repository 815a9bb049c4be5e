"""Conv4 with batch norm of the examples at hand, 5-way 1-shot with 15 queries a class.

The pictures are noise of Omniglot's shape, so that no data is needed.
"""

from collections.abc import Mapping
from functools import cache, partial

import numpy as np
from torch import nn
from torch.nn import functional as F

from benchmarks.peers import few_shot, loops
from benchmarks.peers.few_shot import FewShot
from benchmarks.peers.loops import Peer, Plan
from benchmarks.peers.subject import Subject
from raymtl.data import Arrays
from raymtl.training.fastest import Way

NUM_TASKS = 32
WAYS = [Way("loop"), Way("vmap", 2), Way("vmap", 4), Way("vmap", 8), Way("vmap")]
SECOND_ORDER: Mapping[str, Peer] = {
    "torch": loops.plain,
    "learn2learn": loops.learn2learn,
    "higher": loops.higher,
    "torchopt": loops.torchopt,
}
FIRST_ORDER = {name: SECOND_ORDER[name] for name in ("torch", "learn2learn", "higher")}
"""TorchOpt's inner optimiser always follows its steps."""


def subjects() -> list[Subject]:
    """MAML of both orders, ANIL, Reptile and prototypical networks; MAML at twice the width too."""
    anil = {"torch": loops.plain_anil, "learn2learn": loops.anil}
    return [
        _subject("maml", 1, SECOND_ORDER),
        _subject("maml", 5, SECOND_ORDER, peaks=True),
        _subject("maml", 1, FIRST_ORDER, first_order=True),
        _subject("maml", 5, FIRST_ORDER, first_order=True),
        _subject("anil", 5, anil),
        _subject("reptile", 5, {"torch": loops.reptile}),
        _subject("protonet", 0, {"torch": loops.protonet}),
        _subject("maml", 1, SECOND_ORDER, width=64),
    ]


def _subject(
    learner: str,
    steps: int,
    peers: Mapping[str, Peer],
    *,
    first_order: bool = False,
    width: int = 32,
    peaks: bool = False,
) -> Subject:
    words = [f"conv4 {learner}"]
    if first_order:
        words.append("of first order")
    if steps:
        words.append(f"with {steps} steps" if steps > 1 else "with 1 step")
    if width != 32:
        words.append(f"at width {width}")
    name = " ".join(words)
    learned = FewShot(
        partial(_text, _learner(learner, steps, first_order), width),
        NUM_TASKS,
        partial(conv4, width),
        Plan(F.cross_entropy, 0.1, steps, first_order),
        peers,
        WAYS,
        arrays=noise,
        peaks=peaks,
    )
    contest = partial(few_shot.contest, learned)
    return Subject(name, "task", contest, partial(few_shot.gradients, learned))


def _text(learner: str, width: int, num_tasks: int) -> str:
    return f"""
name: conv4
data: {{name: omniglot, ways: 5, shots: 1, queries: 15, rotations: false}}
encoder: {{name: conv4, width: {width}, norm: batch, transductive: true}}
learner: {learner}
train: {{meta_batch: {num_tasks}}}
"""


def _learner(name: str, steps: int, first_order: bool) -> str:
    if name == "protonet":
        return "{name: protonet}"
    order = ", first_order: true" if first_order else ""
    return f"{{name: {name}, inner_lr: 0.1, inner_steps: {steps}{order}}}"


@cache
def noise(turns: int = 1) -> Arrays:
    """Arrays like those of Omniglot, each character in so many turns."""
    rng = np.random.default_rng(0)
    drawings = rng.integers(0, 256, (turns * 1623, 20, 28, 28), dtype=np.uint8)
    names = np.array([f"character {number}" for number in range(1623)])
    train, val, test = np.split(rng.permutation(1623), [1100, 1200])
    return {"drawings": drawings, "names": names, "train": train, "val": val, "test": test}


def conv4(width: int) -> nn.Module:
    """Four blocks with batch norm of the examples at hand, and a head of 5 classes."""
    layers: list[nn.Module] = []
    for channels in (1, width, width, width):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, track_running_stats=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(nn.Sequential(*layers, nn.Flatten()), nn.Linear(width, 5))
