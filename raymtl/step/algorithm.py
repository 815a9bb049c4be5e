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


class Algorithm(NamedTuple):
    """The three axes on a set of tasks: any sharing architecture, any weighting, any learner.

    Only one thread may use it at a time, because a functional call puts the parameters that it gets
    into the module while it runs.
    """

    tasks: tuple[Task, ...]
    model: SharingArchitecture
    weighting: Weighting
    learner: MetaLearner
    seed: int = 0
    """The seed of the learner's initial parameters; those of the model exist already."""

    def init_params(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Fresh leaf tensors under the prefixes `model.`, `weighting.` and `learner.`; buffers move
        to the device.

        Raises UserError for a model with running statistics.
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

    def objective(self, params: Params, predictions: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The loss of the inner loop, a scalar.

        It is the weighted sum over tasks of the mean loss of the labelled examples.
        """
        counts = label_counts(self.tasks, batch)
        losses = loss_sums(self.tasks, predictions, batch) / counts.clamp(min=1)
        weights: Tensor = functional_call(self.weighting, select(params, "weighting"), ())
        # A copy: the outer step may move the state in place before the graph through here is
        # followed.
        return weights.to(losses, copy=True) @ losses

    def adapt(self, params: Params, support: Batch, steps: int | None = None) -> Params:
        """Parameters fitted to one support set."""
        adapted = self.learner.adapt(self.model, params, support, self.objective, steps)
        if steps is None:
            steps = self.learner.num_steps
        return self.normalised(adapted, support, steps)

    def evaluated_params(
        self, params: Params, support: Batch, step: int
    ) -> Sequence[tuple[float, Params]]:
        """The parameters whose query losses the outer step `step` follows, each with its weight."""
        evaluated = self.learner.evaluated_params(self.model, params, support, self.objective, step)
        pairs = []
        for weight, phi in evaluated:
            steps = phi.get(STEPS_TAKEN, self.learner.num_steps)
            pairs.append((weight, self.normalised(phi, support, steps)))
        return pairs

    def normalised(self, params: Params, support: Batch, steps: int | Tensor = 0) -> Params:
        """The parameters, and beside them what the norms need to predict a query.

        That is the statistics of this support set where there are batch norms, and the number of
        inner steps taken where norms depend on it.
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
        """Predictions of every task from parameters that `adapt` or `normalised` returned."""
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
        """The parameters of the model that the architecture does not share between tasks.

        Heads are private by this rule, even where an inner loop over all tasks couples them.
        """
        shared = {f"model.{name}" for name in self.model.shared}
        return frozenset(
            name for name in params if name.startswith("model.") and name not in shared
        )
