"""One component of each kind as a user's own module defines it: no part of raymtl, registered by its import."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import grad

import raymtl
from raymtl.learners.base import Objective
from raymtl.tasks import regression
from raymtl.tasks.regression import RegressionKind
from raymtl.types import Batch, Params, Task


class Softened(raymtl.LossWeighting):
    """Weighs tasks by the softmax of their losses."""

    def weigh(self, losses: Tensor, tasks: Tensor) -> Tensor:
        return len(losses) * losses.detach().softmax(0)


@raymtl.register
class OwnWeighting(raymtl.LossWeightingSpec):
    """Weighs tasks by the softmax of their losses."""

    name: Literal["own_weighting"] = "own_weighting"
    helps: ClassVar[str] = "in tests"

    def build(self, tasks: Sequence[Task]) -> Softened:
        return Softened(len(tasks))


class Network(nn.Module):
    """Two layers with names."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(1), nn.Linear(inputs, width), nn.Tanh())
        self.body = nn.Sequential(nn.Linear(width, width), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(self.stem(x))
        return features


@raymtl.register
class OwnEncoder(raymtl.EncoderSpecBase):
    """Two layers of a network of the user's own; with `staged: false` as one piece."""

    name: Literal["own_encoder"] = "own_encoder"
    width: int = 8
    staged: bool = True

    def build(self, input_shape: tuple[int, ...], inner_steps: int = 0) -> raymtl.Encoder:
        network = Network(torch.Size(input_shape).numel(), self.width)
        stages: tuple[str, ...] = ()
        if self.staged:
            stages = ("stem", "body")
        return raymtl.from_module(network, input_shape, stages)


class Summed(raymtl.SharingArchitecture):
    """All tasks read the sum of two shared encoders."""

    def __init__(self, tasks: Sequence[Task], encoders: Sequence[raymtl.Encoder]) -> None:
        super().__init__(tasks, encoders[0].shapes[-1])
        self.encoders = nn.ModuleList(encoders)

    @property
    def shared(self) -> frozenset[str]:
        return self._names("encoders")

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        first, second = self.encoders
        return dict.fromkeys(tasks, first(inputs) + second(inputs))


@raymtl.register
class OwnSharing(raymtl.SharingSpecBase):
    """All tasks read the sum of two shared encoders."""

    name: Literal["own_sharing"] = "own_sharing"
    helps: ClassVar[str] = "in tests"

    def num_encoders(self, num_tasks: int) -> int:
        return 2

    def build(
        self,
        tasks: Sequence[Task],
        encoders: Sequence[raymtl.Encoder],
        isolate_task_graphs: bool = False,
    ) -> Summed:
        return Summed(tasks, encoders)


@raymtl.register
class OwnLearner(raymtl.MetaLearner):
    """Gradient descent whose steps are halved each time."""

    name: Literal["own_learner"] = "own_learner"
    helps: ClassVar[str] = "in tests"
    costs: ClassVar[str] = "as maml"
    inner_lr: float = 0.05
    inner_steps: int = 1

    @property
    def num_steps(self) -> int:
        return self.inner_steps

    def adapt(
        self,
        model: raymtl.SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        def loss(theta: Params) -> Tensor:
            phi = {**params, **theta}
            return objective(phi, self.predict(model, phi, support.inputs), support)

        theta = {name: value for name, value in params.items() if name.startswith("model.")}
        for step in range(self.inner_steps if steps is None else steps):
            gradients = grad(loss)(theta)
            rate = self.inner_lr / 2**step
            theta = {name: value - rate * gradients[name] for name, value in theta.items()}
        return {**params, **theta}


def off(prediction: Tensor, target: Tensor) -> Tensor:
    """Errors [N], in units of 2 about 1."""
    return prediction[:, 0] - (target.to(prediction) - 1) / 2


@raymtl.register
class OwnKind(RegressionKind):
    """Numbers whose loss is log cosh of the error, with a score of its own: the share that is near."""

    name = "own_kind"

    def make(self, name: str, labels: raymtl.LabelStatistics, size: tuple[int, int]) -> Task:
        plain = regression(name, 1.0, 2.0)
        near = raymtl.Metric(
            lambda prediction, target: (off(prediction, target).abs() < 0.5).double(), True
        )
        return plain._replace(
            kind=self,
            loss=lambda prediction, target: off(prediction, target).cosh().log(),
            metrics={"near": near, **plain.metrics},
            quadratic=False,
        )
