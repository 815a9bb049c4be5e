"""Model transfer: fine-tuning, drawn to where it began by L2-SP (Li et al., 2018,
arXiv:1802.01483).

min over theta, h of L(h(f_theta(x)), y) + lambda |theta - theta_0|^2 + beta |h|^2.
"""

import copy
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from raymtl.adaptation.transfer.base import Learned, Transfer
from raymtl.adaptation.transfer.descent import Anchor
from raymtl.adaptation.transfer.network import Network, Teacher, headed
from raymtl.adaptation.transfer.task import Examples
from raymtl.types import Task


class ModelTransfer(Transfer):
    """Fine-tunes the whole trained model with a new head; `l2_sp` is lambda, which draws the body
    to theta_0.

    The gradient of the penalty is 2 lambda (theta - theta_0); an infinite lambda keeps theta_0, 0
    is plain fine-tuning. The new head has no theta_0 to return to: `l2_head`, beta, draws it to 0,
    and is 0 unless given. Deviations from the paper: no factor 1/2, and the penalties are taken by
    their proximal step, whose stationary points are the same, so that a large lambda does not
    diverge.
    """

    name: Literal["model"] = "model"
    helps: ClassVar[str] = "there are examples enough to move the features too"
    l2_sp: NonNegativeFloat = 0.001
    l2_head: NonNegativeFloat = 0.0

    def network(self, teacher: Teacher, task: Task) -> Network:
        body = copy.deepcopy(teacher.body).requires_grad_(True)
        return headed(body, task, teacher.input_shape, self.optimiser.seed)

    def learned(self, teacher: Teacher, network: Network, task: Task, train: Examples) -> Learned:
        def loss(read: Tensor, rows: Tensor) -> Tensor:
            return task.loss(network(read), train.targets[rows])

        return Learned(network, lambda inputs: inputs, network, loss, self.anchors(network))

    def anchors(self, network: Network) -> dict[str, Anchor]:
        """What each parameter of the network is drawn to, and how strongly."""
        return {
            name: Anchor(value.detach().clone(), self.l2_sp)
            if name.startswith("body.")
            else Anchor(torch.zeros_like(value), self.l2_head)
            for name, value in network.named_parameters()
        }
