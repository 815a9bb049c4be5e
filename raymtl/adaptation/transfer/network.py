"""A trained body with a head of the new task, as an ordinary module."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raymtl.adaptation.transfer.task import Examples
from raymtl.sharing import SharingArchitecture
from raymtl.types import Params, Task, UserError, prefixed

Predict = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """`head` of `body`: [N, ...] -> [N, out_features].

    With a `frozen` network inputs are pictures, and the body reads their features.
    """

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.frozen: nn.Module | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.frozen is not None:
            inputs = self.frozen(inputs)
        prediction: Tensor = self.head(self.body(inputs))
        return prediction


class Trunk(nn.Module):
    """The features that one task of a sharing architecture reads, [N, ...] -> [N, F]; its heads are
    left behind.
    """

    def __init__(self, sharing: SharingArchitecture, reads: str) -> None:
        super().__init__()
        self.sharing, self.reads = copy.deepcopy(sharing), reads
        self.sharing.heads = nn.ModuleDict()

    def forward(self, inputs: Tensor) -> Tensor:
        read = self.sharing.expanded(inputs)
        return self.sharing.features(read, (self.reads,))[self.reads]


class Teacher(NamedTuple):
    """What is learned from: a trained body, and where it has the new task too, its predictions.

    `predict` gives the logits [N, classes], or for regression values [N] in the target's own unit;
    `adapt` gives one that was fitted to examples first.
    """

    body: nn.Module
    input_shape: tuple[int, ...]
    predict: Predict | None = None
    adapt: Callable[[Examples], Predict] | None = None

    @property
    def front(self) -> nn.Module | None:
        """What expands the inputs for encoders."""
        if isinstance(self.body, Trunk):
            return self.body.sharing.front
        return None

    @property
    def encoder_shape(self) -> tuple[int, ...]:
        """The shape of one input as an encoder reads it, behind the front."""
        if self.front is None:
            return self.input_shape
        read: Tensor = self.front(torch.zeros(1, *self.input_shape))
        return tuple(read.shape[1:])


def headed(body: nn.Module, task: Task, input_shape: tuple[int, ...], seed: int) -> Network:
    """The body with a fresh head, initialised from `seed`, of the width that the body's features
    have.
    """
    with torch.no_grad():
        width = body(torch.zeros(2, *input_shape)).shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(body, task.head((width,)))


def named(network: Network, task: str) -> Params:
    """Parameters and constants of a body that is a Trunk, and parameters of its head, under the
    names that a model folder gives them.
    """
    assert isinstance(network.body, Trunk)
    sharing = network.body.sharing
    own = {**dict(sharing.named_parameters()), **dict(sharing.named_buffers())}
    head = prefixed(dict(network.head.named_parameters()), f"heads.{task}")
    return prefixed({**own, **head}, "model")


def check_inputs(teacher: Teacher, inputs: Tensor) -> None:
    """Raises UserError where the teacher cannot read what the student is to learn."""
    if tuple(inputs.shape[1:]) != teacher.input_shape:
        raise UserError(
            f"input: expected the shape that the trained model reads, {list(teacher.input_shape)}, "
            f"got {list(inputs.shape[1:])}. Teacher and student see the same inputs; bring them to "
            "that shape."
        )
