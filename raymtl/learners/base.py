"""The interface of all learners: from a support set to parameters, from those to predictions."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from raymtl.encoders.dropout import dropping
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, Spec, Task, select

BATCH_EMBEDDINGS = "learner.batch"
"""The key of the embeddings of all tasks of a meta-batch, [E, K, D], among the parameters."""
STEPS_TAKEN = "learner.steps"
"""The key of the number of inner steps behind evaluated parameters, where it is not `num_steps`."""

Objective = Callable[[Params, Mapping[str, Tensor], Batch], Tensor]
"""(parameters, predictions, batch) -> the weighted loss of the tasks, a scalar."""


class MetaLearner(Spec, ABC):
    """A way to learn from a support set, given by its hyperparameters.

    A learner has no state. All that is learned is in the mapping of parameters.
    """

    section: ClassVar[str] = "learner"
    helps: ClassVar[str]
    """When one would choose the method, half a sentence for docs/methods.md."""

    costs: ClassVar[str]
    """What an episode costs in a step, in forward and backward passes."""

    uses_query_gradient: ClassVar[bool] = True
    """False if the meta-gradient is the displacement of the parameters by adapting."""

    @property
    def rematerializes(self) -> bool:
        """Whether the backward pass evaluates the inner objective again."""
        return False

    @property
    def has_per_step_params(self) -> bool:
        """Whether each inner step may use its own parameters, as `encoder.norm: per_step` does."""
        return self.num_steps > 0

    reads_support: ClassVar[bool] = True
    """False for a learner that trains without support sets, so that these are not drawn."""

    supports_zero_shot: ClassVar[bool] = True
    """Whether the parameters predict before adapting to a support set."""

    @property
    def uses_support(self) -> bool:
        """Whether predictions depend on the support set."""
        return self.num_steps > 0 or not self.supports_zero_shot

    def check(self, tasks: Sequence[Task]) -> str | None:
        """Why the learner cannot learn these tasks, as half a sentence; None where it can."""
        return None

    def check_parameters(self, names: Callable[[], Sequence[str]]) -> tuple[str, str] | None:
        """Why the learner does not fit a model of these parameters; None where it does.

        The first string is the key below `learner.`. The second continues the sentence after it:
        what was expected, what was got, what to do.
        """
        return None

    @property
    def uses_batch_context(self) -> bool:
        """Whether adapting in training reads the embeddings of the whole meta-batch."""
        return False

    def graph_key(self, step: int) -> Hashable | None:
        """What `evaluated_params` depends on in the outer step `step`, apart from its arguments.

        One traced graph serves all steps with equal keys. None if no two steps are alike.
        """
        return "always"

    def init_params(self, model_params: Params, generator: torch.Generator) -> Params:
        """The learner's own outer parameters, such as learned inner rates.

        All randomness is drawn from `generator`.
        """
        return {}

    def moves(self, step: int, parameter: str) -> bool:
        """Whether the outer step `step` moves the parameter of this name, prefix included."""
        return True

    def embed(self, model: SharingArchitecture, params: Params, support: Batch) -> Tensor | None:
        """Embeddings of the tasks of one support set, [K, D]; None for a learner without them.

        Where `uses_batch_context`, training passes the embeddings of all episodes of all workers,
        [E, K, D], to `adapt` as `params[BATCH_EMBEDDINGS]`. They are constants there.
        """
        return None

    def relations(self, params: Params, embeddings: Tensor) -> Tensor | None:
        """How related tasks are, [M, M], from their embeddings [M, D]; None for a learner that
        cannot tell.

        The embeddings are rows of `embed`, of any tasks of any episodes.
        """
        return None

    def auxiliary(
        self, model: SharingArchitecture, params: Params, support: Batch
    ) -> Tensor | None:
        """The learner's own term of the outer objective, a scalar of one support set.

        The objective takes its mean over episodes.
        """
        return None

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """The number of inner steps that `adapt` takes by default."""

    @abstractmethod
    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        """Parameters fitted to one support set.

        The result is differentiable in `params`, and safe under vmap over support sets.

        Args:
            model: the architecture.
            params: all outer parameters.
            support: the examples to fit, [N, ...].
            objective: the weighted loss of the tasks on them.
            steps: the number of inner steps; `num_steps` by default.
        """

    def evaluated_params(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        step: int,
    ) -> Sequence[tuple[float, Params]]:
        """The parameters whose query losses make up the loss of the outer step `step`, each with
        its weight.

        By default these are the adapted parameters alone. A learner overrides it for multi-step
        losses, which include query losses after earlier inner steps, or if it trains in another way
        than it adapts.
        """
        return [(1.0, self.adapt(model, params, support, objective))]

    def predict(
        self, model: SharingArchitecture, params: Params, inputs: Tensor | Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Predictions of every task from adapted parameters."""
        with dropping(params):
            own = select(params, "model")
            predictions: dict[str, Tensor] = functional_call(model, own, (inputs,))
        return predictions


class AmortisedLearner(MetaLearner):
    """Computes adapted parameters in one pass over the support set, without inner steps.

    It predicts nothing before it has read a support set.
    """

    supports_zero_shot: ClassVar[bool] = False

    @property
    def num_steps(self) -> int:
        return 0
