"""Feature transfer (Donahue et al., 2013, arXiv:1310.1531): min over h of L(h(f(x)), y), f as it
was trained.
"""

import copy
from typing import ClassVar, Literal

import torch
from torch import Tensor

from raymtl.adaptation.transfer.base import Learned, Transfer
from raymtl.adaptation.transfer.network import Network, Teacher, headed
from raymtl.adaptation.transfer.task import Examples
from raymtl.types import Task


class FeatureTransfer(Transfer):
    """Trains a new head on the frozen features of the trained model.

    The features are computed once: a step costs as much as the head. No gradient reaches the body.
    """

    name: Literal["feature"] = "feature"
    helps: ClassVar[str] = "examples are few, and the new task is much like the old ones"

    def network(self, teacher: Teacher, task: Task) -> Network:
        body = copy.deepcopy(teacher.body).requires_grad_(False)
        return headed(body, task, teacher.input_shape, self.optimiser.seed)

    def learned(self, teacher: Teacher, network: Network, task: Task, train: Examples) -> Learned:
        def features(inputs: Tensor) -> Tensor:
            with torch.no_grad():
                read: Tensor = network.body(inputs)
                return read

        def loss(read: Tensor, rows: Tensor) -> Tensor:
            return task.loss(network.head(read), train.targets[rows])

        return Learned(network.head, features, network.head, loss, {})
