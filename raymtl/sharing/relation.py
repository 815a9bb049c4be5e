"""Multi-task relationship learning (Zhang & Yeung, 2010, UAI, arXiv:1203.3536).

min over W, Omega: sum_t L_t + lambda_1 / 2 tr(W W^T) + lambda_2 / 2 tr(W Omega^-1 W^T), Omega >= 0,
tr(Omega) = 1; for fixed W: Omega = (W^T W)^(1/2) / tr((W^T W)^(1/2)).
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingSpecBase
from raymtl.sharing.hard import Hard
from raymtl.types import Params, Task


class Relation(Hard):
    """All tasks share one trunk. A learned covariance of the tasks draws the heads of related tasks
    together.

    W [d, K] has a column for each task: all weights of its head, without biases. Every step of the
    optimiser is one step of the paper's alternation: Omega is computed in closed form from the
    current W, and held fixed in the gradient lambda_1 W + lambda_2 W Omega^-1. The second term is
    then lambda_2 / 2 times the squared trace norm of W.

    Deviations from the paper: the features are learned too; `ridge` times the identity is added to
    (W^T W)^(1/2) before it is divided by its trace, so that Omega has an inverse.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoders: Sequence[Encoder],
        lambda_1: float,
        lambda_2: float,
        ridge: float,
        isolate_task_graphs: bool = False,
    ) -> None:
        super().__init__(tasks, encoders, isolate_task_graphs)
        self.lambda_1, self.lambda_2, self.ridge = lambda_1, lambda_2, ridge

    def weights(self, params: Params) -> Tensor:
        """W, [d, K]."""
        columns = []
        for name in self.task_names:
            own = [params[f"heads.{name}.{key}"] for key in _weight_shapes(self.heads[name])]
            columns.append(torch.cat([weight.flatten() for weight in own]))
        return torch.stack(columns, 1)

    def relation(self, params: Params) -> Tensor:
        """Omega [K, K], the covariance of the tasks: positive definite, of trace 1, without a
        graph.
        """
        _, scales, directions = torch.linalg.svd(self.weights(params).detach(), full_matrices=False)
        root = directions.T * scales @ directions + self.ridge * torch.eye(len(self.task_names)).to(
            directions
        )
        unit_trace: Tensor = root / root.trace()
        return unit_trace

    def penalty(self, params: Params) -> Tensor:
        weights = self.weights(params)
        # W Omega^-1 from the factors of W: to solve with Omega, whose condition is 1 / ridge, would
        # lose all digits in float32 where there are more tasks than weights.
        left, scales, directions = torch.linalg.svd(weights.detach(), full_matrices=False)
        trace = scales.sum() + len(self.task_names) * self.ridge
        within = trace * (left * (scales / (scales + self.ridge))) @ directions
        # With Omega held fixed the gradient of tr(W Omega^-1 W^T) is twice W Omega^-1.
        relation = 2 * (weights * within).sum() - (weights.detach() * within).sum()
        penalty: Tensor = self.lambda_1 / 2 * weights.square().sum() + self.lambda_2 / 2 * relation
        return penalty


class RelationSpec(SharingSpecBase):
    """All tasks share the trunk, and a learned covariance of the tasks relates the weights of their
    heads.

    `lambda_1` draws the weights to zero, `lambda_2` to those of related tasks and away from those
    of opposed ones. All heads need weights of the same shape: tasks of the same kind with as many
    outputs each.

    Example: `sharing: {name: relation, lambda_2: 0.01}`
    """

    name: Literal["relation"] = "relation"
    helps: ClassVar[str] = (
        "tasks are alike, and which are related or opposed is to be learned and read"
    )
    lambda_1: NonNegativeFloat = 0.0001
    lambda_2: NonNegativeFloat = 0.001
    ridge: PositiveFloat = 1e-6

    def check(self, tasks: Sequence[Task], encoder: Encoder) -> tuple[str, str] | None:
        impossible = super().check(tasks, encoder)
        if impossible:
            return impossible
        with torch.device("meta"):
            shapes = {task.name: _weight_shapes(task.head(encoder.shapes[-1])) for task in tasks}
        first = tasks[0].name
        for name, own in shapes.items():
            if own != shapes[first]:
                return (
                    "name",
                    "relation compares the weights of heads and needs the same shapes in all, got "
                    f"{_listed(own)} for '{name}' and {_listed(shapes[first])} for '{first}'. "
                    "Choose tasks with as many outputs each, or another sharing.name.",
                )
        return None

    def num_encoders(self, num_tasks: int) -> int:
        return 1

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> Relation:
        return Relation(
            tasks, encoders, self.lambda_1, self.lambda_2, self.ridge, isolate_task_graphs
        )


def _weight_shapes(head: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a head's weights, its parameters of two dimensions or more."""
    return {name: tuple(value.shape) for name, value in head.named_parameters() if value.ndim > 1}


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes.values())
