"""What every way of carrying knowledge to a new task is: a network, a loss on the new examples,
what stays near.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from raymtl.adaptation.transfer.descent import Anchor, Course, Look, Objective, Optimiser, descend
from raymtl.adaptation.transfer.network import Network, Teacher, check_inputs
from raymtl.adaptation.transfer.split import split
from raymtl.adaptation.transfer.task import Examples, NewTask
from raymtl.types import Spec, Task


class Result(NamedTuple):
    """A network for the new task, how it was trained, and the examples that it was selected by,
    often none.
    """

    network: Network
    task: Task
    course: Course
    trained_on: Examples
    held_out: Examples


class Learned(NamedTuple):
    """What is trained: a module, what it reads of an input, and its loss at some rows of the
    training examples.
    """

    module: nn.Module
    reads: Callable[[Tensor], Tensor]
    """Inputs [N, ...] -> what `predict` takes, computed once."""
    predict: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    """(what was read of the rows, rows [n]) -> [n]"""
    anchors: Mapping[str, Anchor]
    """Of parameters by their names in the module."""


class Transfer(Spec, ABC):
    """The hyperparameters are the way: `fit` gives a network for the task of the examples."""

    name: str
    task: NewTask = NewTask()
    optimiser: Optimiser = Optimiser()
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of the examples that the step is selected by; 0 takes the last step."""
    reads: str | None = None
    """The trained task whose features the new head reads; the first one unless given."""

    @abstractmethod
    def network(self, teacher: Teacher, task: Task) -> Network:
        """The network as training begins with it."""

    @abstractmethod
    def learned(self, teacher: Teacher, network: Network, task: Task, train: Examples) -> Learned:
        """What of it is trained, and by what."""

    def fit(self, teacher: Teacher, examples: Examples, look: Look = lambda row: None) -> Result:
        """Trains on the examples. Raises UserError for examples that do not fit, DivergedError
        where it diverges.
        """
        self.task.check(examples)
        check_inputs(teacher, examples.inputs)
        kind = self.task.task_kind
        train, held_out = split(examples, self.held_out, self.optimiser.seed, kind)
        # Classes are counted over all examples, the spread of numbers over those that are trained
        # on.
        task = kind.build(self.task, examples.targets, train.targets)
        network = self.network(teacher, task)
        learned = self.learned(teacher, network, task, train)
        read = learned.reads(train.inputs)
        objective = Objective(
            lambda rows: learned.loss(read[rows], rows), len(train.targets), learned.anchors
        )
        if len(held_out.targets):
            validate = _validation(task, learned, held_out)
            objective = objective._replace(validate=validate)
        course = descend(self.optimiser, learned.module, objective, look)
        return Result(network, task, course, train, held_out)


def _validation(task: Task, learned: Learned, held_out: Examples) -> Callable[[], float]:
    """The mean loss of the held-out examples."""
    read = learned.reads(held_out.inputs)

    @torch.no_grad()
    def validate() -> float:
        return float(task.loss(learned.predict(read), held_out.targets).mean())

    return validate
