"""What is learned: a model, a weighting of its tasks and a learner."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from raymtl.encoders.norm import (
    BatchStatistics,
    PerStepNorm,
    after_steps,
    recorded_statistics,
    refuse_running_statistics,
    statistics_of,
)
from raymtl.learners import MetaLearner
from raymtl.learners.base import STEPS_TAKEN
from raymtl.sharing import SharingArchitecture
from raymtl.tasks import label_counts, loss_sums
from raymtl.types import Batch, Params, Task, prefixed, select
from raymtl.weighting import Weighting

CONSTANT = "constant"


class Algorithm(NamedTuple):
    """A model with its sharing architecture, a weighting and a meta-learner, for a set of tasks.

    Only one thread may use it at a time: a functional call puts its parameters into the module
    while it runs.
    """

    tasks: tuple[Task, ...]
    model: SharingArchitecture
    weighting: Weighting
    learner: MetaLearner
    seed: int = 0
    """The seed of the learner's initial parameters; those of the model exist already."""

    def init_params(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Returns new parameters to train, as leaf tensors on the device.

        Their names begin with `model.`, `weighting.` or `learner.`. The buffers of the model and of
        the weighting move to the device too.

        Raises:
            UserError: the model has running statistics, such as those of torch's BatchNorm.
        """
        refuse_running_statistics(self.model.prediction_modules())
        self.model.to(device)
        self.weighting.to(device)
        model = dict(self.model.named_parameters())
        params = {
            **prefixed(model, "model"),
            **prefixed(dict(self.weighting.named_parameters()), "weighting"),
            **prefixed(
                self.learner.init_params(model, torch.Generator().manual_seed(self.seed)), "learner"
            ),
        }
        return {
            name: value.detach().clone().to(device).requires_grad_()
            for name, value in params.items()
        }

    def constants(self) -> dict[str, Tensor]:
        """Returns what predictions depend on beside the parameters, which no step changes.

        These are the frozen stages and statistics of a pre-trained encoder. Their names begin with
        `constant.`. A model's file has them beside the parameters.
        """
        return prefixed(dict(self.model.named_buffers()), CONSTANT)

    def take(self, values: Params) -> dict[str, Tensor]:
        """Returns the parameters of a model's file; the constants in it become those of the model.

        Args:
            values: as a file has them, with the names and shapes of `init_params` and `constants`.
        """
        for name, value in self.constants().items():
            value.copy_(values[name])
        return {n: v for n, v in values.items() if not n.startswith(f"{CONSTANT}.")}

    def objective(self, params: Params, predictions: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Returns the loss of the inner loop: the weighted sum of the tasks' losses, a scalar.

        The loss of a task is the mean over its labelled examples, and 0 where it has none.

        Args:
            params: the parameters, of which this reads those of the weighting.
            predictions: what `predict` returned for the inputs of the batch.
            batch: the labels of one support set, without an axis of episodes.
        """
        counts = label_counts(self.tasks, batch)
        losses = loss_sums(self.tasks, predictions, batch) / counts.clamp(min=1)
        weights: Tensor = functional_call(self.weighting, select(params, "weighting"), ())
        # A copy: the outer step may move the state in place before the graph through here is
        # followed.
        return weights.to(losses, copy=True) @ losses

    def adapt(self, params: Params, support: Batch, steps: int | None = None) -> Params:
        """Returns the parameters after the inner loop on one support set.

        They also hold what the norms need to predict a query (`normalised`).

        Args:
            params: the parameters to start from; they are not changed.
            support: one support set, inputs [N, ...], without an axis of episodes.
            steps: inner steps to take; None for as many as the learner is set to.
        """
        adapted = self.learner.adapt(self.model, params, support, self.objective, steps)
        if steps is None:
            steps = self.learner.num_steps
        return self.normalised(adapted, support, steps)

    def evaluated_params(
        self, params: Params, support: Batch, step: int
    ) -> Sequence[tuple[float, Params]]:
        """Returns the parameters at which the outer step takes the query loss, with their weights.

        Most learners give those after the inner loop with the weight 1. Some, such as MAML++, give
        those after each inner step. The last ones are those after the whole inner loop.

        Args:
            params: the parameters to start from; they are not changed.
            support: one support set, inputs [N, ...], without an axis of episodes.
            step: the number of the outer step, by which a learner may change the weights.
        """
        evaluated = self.learner.evaluated_params(self.model, params, support, self.objective, step)
        pairs = []
        for weight, phi in evaluated:
            steps = phi.get(STEPS_TAKEN, self.learner.num_steps)
            pairs.append((weight, self.normalised(phi, support, steps)))
        return pairs

    def normalised(self, params: Params, support: Batch, steps: int | Tensor = 0) -> Params:
        """Returns the parameters together with what the norms need to predict a query.

        Batch norms need the statistics of the support set. Norms with parameters for each inner
        step need the number of steps taken, `steps`.
        """
        extra: dict[str, Tensor] = {}
        if any(isinstance(norm, PerStepNorm) for norm in self._norms):
            extra["support.steps"] = torch.as_tensor(
                steps, device=next(iter(params.values())).device
            )
        if self.normalises_by_support:
            with after_steps(steps), recorded_statistics() as maps:
                self.learner.predict(self.model, params, support.inputs)
            extra |= {f"support.norms.{index}": each for index, each in enumerate(maps)}
        if extra:
            return {**params, **extra}
        return params

    @property
    def uses_support(self) -> bool:
        """Whether the prediction for an example depends on the support set or on other queries."""
        return self.learner.uses_support or bool(self._norms)

    def predict(self, params: Params, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the predictions [N, ...] of every task for inputs [N, ...].

        `params` are what `adapt` or `normalised` returned.

        Raises:
            ValueError: the model has batch norms, and `params` hold no statistics for them.
        """
        with after_steps(params.get("support.steps", 0)):
            if not self.normalises_by_support:
                return self.learner.predict(self.model, params, inputs)
            maps = select(params, "support.norms")
            if not maps:
                raise ValueError(
                    "expected parameters that know a support set: adapt or normalise them first."
                )
            with statistics_of([maps[str(index)] for index in range(len(maps))]):
                return self.learner.predict(self.model, params, inputs)

    @property
    def _norms(self) -> list[BatchStatistics]:
        return [
            module
            for module in self.model.prediction_modules()
            if isinstance(module, BatchStatistics)
        ]

    @property
    def normalises_by_support(self) -> bool:
        """Whether a prediction needs the statistics of a support set."""
        return any(not norm.transductive for norm in self._norms)

    @property
    def transductive(self) -> bool:
        """Whether the prediction for a query depends on the other queries."""
        return any(norm.transductive for norm in self._norms)

    def private(self, params: Params) -> frozenset[str]:
        """Returns the names of the model's parameters that the architecture does not share.

        The heads of the tasks are among them, although an inner loop over all tasks couples them.
        """
        shared = {f"model.{name}" for name in self.model.shared_with_front}
        return frozenset(
            name for name in params if name.startswith("model.") and name not in shared
        )
