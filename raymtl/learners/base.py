"""What every learner offers: a support set becomes parameters, parameters and inputs become
predictions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, Spec, Task, select

BATCH_EMBEDDINGS = "learner.batch"
"""The key of the embeddings of all tasks of the meta-batch, [E, K, D], among the parameters."""
STEPS_TAKEN = "learner.steps"
"""The key of the number of inner steps behind evaluated parameters, where it is not `num_steps`."""

Objective = Callable[[Params, Mapping[str, Tensor], Batch], Tensor]
"""(parameters, predictions, batch) -> the weighted loss of the tasks, a scalar."""


class MetaLearner(Spec, ABC):
    """The hyperparameters are the learner: it keeps no state, all that is learned is in the
    parameter mapping.
    """

    helps: ClassVar[str]
    """When one would choose the method, half a sentence for docs/methods.md."""

    costs: ClassVar[str]
    """What an episode costs in a step, in forward and backward passes."""

    uses_query_gradient: ClassVar[bool] = True
    """False if the meta-gradient is the displacement of the parameters, not a gradient of the query
    loss.
    """

    @property
    def rematerializes(self) -> bool:
        """Whether the backward pass evaluates the inner objective again."""
        return False

    @property
    def has_per_step_params(self) -> bool:
        """Whether the function that is fitted may be another in each inner step."""
        return self.num_steps > 0

    supports_zero_shot: ClassVar[bool] = True
    """Whether parameters that saw no support set predict at all."""

    @property
    def uses_support(self) -> bool:
        """Whether predictions depend on the support set."""
        return self.num_steps > 0 or not self.supports_zero_shot

    def check(self, tasks: Sequence[Task]) -> str | None:
        """Why the learner cannot learn these tasks, as half a sentence; None where it can."""
        return None

    def check_parameters(self, names: Callable[[], Sequence[str]]) -> tuple[str, str] | None:
        """What cannot be with a model of these parameters: the key below `learner.` and a sentence;
        None if nothing.

        The sentence goes on after the key: what was expected, what was got, what to do.
        """
        return None

    @property
    def uses_batch_context(self) -> bool:
        """Whether an episode's adaptation in training reads what `embed` makes of the whole
        meta-batch.
        """
        return False

    def init_params(self, model_params: Params, generator: torch.Generator) -> Params:
        """The learner's own outer parameters, such as learned inner rates; all chance is from
        `generator`.
        """
        return {}

    def moves(self, step: int, parameter: str) -> bool:
        """Whether the outer step `step` moves the parameter of this name, prefix included."""
        return True

    def embed(self, model: SharingArchitecture, params: Params, support: Batch) -> Tensor | None:
        """What the learner knows a task by, of each task of one support set: [K, D]; None where it
        knows none so.

        Where `uses_batch_context`, training gives the embeddings of all episodes of all workers, [E, K,
        D], to `adapt` as `params[BATCH_EMBEDDINGS]`. No gradient follows them: they are the others', and read
        as they are.
        """
        return None

    def relations(self, params: Params, embeddings: Tensor) -> Tensor | None:
        """What the learner holds tasks to be to each other, [M, M], by their embeddings [M, D];
        None where nothing.

        The embeddings are rows of `embed`, of any tasks of any episodes.
        """
        return None

    def auxiliary(
        self, model: SharingArchitecture, params: Params, support: Batch
    ) -> Tensor | None:
        """A term of the learner's own in the outer objective: a scalar of one support set, averaged
        over episodes.
        """
        return None

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Inner steps that `adapt` takes unless told otherwise."""

    @abstractmethod
    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        """Parameters fitted to one support set [N, ...]; `steps` overrides the number of inner
        steps.

        Differentiable in `params`, and safe under vmap over the support sets.
        """

    def evaluated_params(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        step: int,
    ) -> Sequence[tuple[float, Params]]:
        """The parameters whose query losses the outer step `step` follows, each with its weight.

        The default is the adapted parameters alone. A learner overrides it for multi-step losses,
        which also count the query loss on the way, or where it trains otherwise than it adapts.
        """
        return [(1.0, self.adapt(model, params, support, objective))]

    def predict(
        self, model: SharingArchitecture, params: Params, inputs: Tensor | Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Predictions of every task from adapted parameters."""
        predictions: dict[str, Tensor] = functional_call(model, select(params, "model"), (inputs,))
        return predictions
