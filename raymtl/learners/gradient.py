"""Learners that take gradient steps on the support set, and three ways to differentiate them."""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.func import functional_call

from raymtl.encoders.norm import PerStepNorm
from raymtl.learners.base import MetaLearner, Objective
from raymtl.learners.checkpointed import checkpointed
from raymtl.learners.classes import features_of
from raymtl.learners.implicit import implicit, through_equal_steps
from raymtl.learners.inner import (
    MOMENTUM,
    InnerOptimizer,
    InnerState,
    Rates,
    inner_loop,
    inner_path,
    inner_start,
    inner_step,
)
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, UserError, matches_last, select

SupportLoss = Callable[[Params, Params, Batch], Tensor]
"""(phi, params, support) -> what the inner loop minimises, a scalar of its arguments alone."""


class GradientLearner(MetaLearner):
    """Takes gradient steps on the support objective.

    Subclasses decide which parameters the steps move, from where, and how fast.

    `adapts` lists patterns for the names of the model's parameters, such as `heads.*`,
    `encoders.0.stages.1.*` or `*.bias`. The file model.safetensors in a run folder has these names,
    with `model.` before each. The inner loop moves the parameters that a pattern matches. A later
    pattern that begins with `-` excludes what it matches: ["*", "-heads.*"] is everything but the
    heads.
    """

    name: str
    inner_lr: PositiveFloat = 0.02
    inner_steps: NonNegativeInt = 3
    inner_optimizer: InnerOptimizer = "sgd"
    adapts: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)

    @property
    def num_steps(self) -> int:
        return self.inner_steps

    def check_parameters(self, names: Callable[[], Sequence[str]]) -> tuple[str, str] | None:
        if self.adapts == ("*",):
            return None
        existing = names()
        for pattern in self.adapts:
            if not any(fnmatchcase(name, pattern.removeprefix("-")) for name in existing):
                return "adapts", (
                    f"expected patterns of the model's parameters, and '{pattern}' matches none of "
                    f"the {len(existing)}, such as {existing[0]} and {existing[-1]}. Correct the "
                    "pattern."
                )
        if not any(matches_last(name, self.adapts) for name in existing):
            return (
                "adapts",
                f"expected to choose a parameter, got {list(self.adapts)}, which leave out all. "
                "Remove one.",
            )
        return None

    @property
    def learns_rates(self) -> bool:
        """Whether `rates` may depend on learned parameters, as in any subclass with its own."""
        return type(self).rates is not GradientLearner.rates

    def start(self, params: Params) -> dict[str, Tensor]:
        """The parameters that the inner loop moves, with their first values: those that `adapts`
        chooses.
        """
        return {
            name: value
            for name, value in params.items()
            if name.startswith("model.") and matches_last(name.removeprefix("model."), self.adapts)
        }

    def rates(self, params: Params, step: int) -> Rates:
        """The rate of each moved parameter in the inner step `step`; the first step is 0."""
        return dict.fromkeys(self.start(params), self.inner_lr)

    def fitted(self, params: Params, phi: Params) -> Params:
        """All parameters, with those of the inner loop at `phi`."""
        return {**params, **phi}

    def support_loss(self, model: SharingArchitecture, objective: Objective) -> SupportLoss:
        """What the inner loop minimises."""

        def loss(phi: Params, params: Params, support: Batch) -> Tensor:
            return objective(
                params, self.predict(model, self.fitted(params, phi), support.inputs), support
            )

        return loss

    def _moves_heads_alone(self, model: SharingArchitecture, params: Params) -> bool:
        """Whether the features of the support set are the same in all inner steps."""
        own = type(self)
        if (
            own.fitted is not GradientLearner.fitted
            or own.predict is not MetaLearner.predict
            or own.support_loss is not GradientLearner.support_loss
        ):
            return False
        if not all(name.startswith("model.heads.") for name in self.start(params)):
            return False
        return not any(isinstance(module, PerStepNorm) for module in model.prediction_modules())

    def _support_loss_of_heads(
        self, model: SharingArchitecture, params: Params, support: Batch, objective: Objective
    ) -> SupportLoss:
        """`support_loss` of these parameters and this support set, whose features are computed
        once.
        """
        features = features_of(model, params, support.inputs)

        def loss(phi: Params, params: Params, support: Batch) -> Tensor:
            own = select(self.fitted(params, phi), "model")
            predictions = functional_call(model, own, (features,), {"output": "of_features"})
            return objective(params, predictions, support)

        return loss

    def path(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        *,
        first_order: bool,
    ) -> Iterator[Params]:
        """Yields the parameters before the first inner step and after each step, without end."""
        if first_order:
            # Nothing of the inner gradient is followed, not even its dependence on the weighting.
            fixed: Params = {name: value.detach() for name, value in params.items()}
        else:
            fixed = params
        if self._moves_heads_alone(model, params):
            loss = self._support_loss_of_heads(model, fixed, support, objective)
        else:
            loss = self.support_loss(model, objective)
        steps = inner_path(
            lambda phi: loss(phi, fixed, support),
            self.start(params),
            lambda step: self.rates(params, step),
            first_order=first_order,
            optimizer=self.inner_optimizer,
        )
        return (self.fitted(params, phi) for phi in steps)


class UnrolledLearner(GradientLearner):
    """Differentiates through its inner steps; `first_order` takes their Jacobian as the identity.

    `gradient` chooses how the backward pass goes through the k steps. "unrolled" keeps all that
    each step computed. "checkpointed" keeps about 2 sqrt(k) of the inner parameters and computes
    each step twice more; the gradient is the same, in the memory of one step. "implicit" keeps only
    the last inner parameters, and uses the second derivatives there for all steps. Its gradient is
    exact for the initialisation if the objective is quadratic. Otherwise it is the more accurate,
    the longer the steps have stayed at their goal. It costs `curvature_products` Hessian-vector
    products instead of k (docs/long-loops.md).
    """

    first_order: bool = False
    gradient: Literal["unrolled", "checkpointed", "implicit"] = "unrolled"
    curvature_products: PositiveInt = 10

    @model_validator(mode="after")
    def _gradient_that_exists(self) -> Self:
        if self.gradient != "unrolled" and self.first_order:
            raise UserError(
                "learner.gradient: expected unrolled with learner.first_order: true, which goes "
                f"back through no step, got {self.gradient}. Leave out one of the two."
            )
        if self.gradient == "implicit" and (self.learns_rates or self.inner_optimizer == "adam"):
            if self.learns_rates:
                given = "learned inner rates"
            else:
                given = "learner.inner_optimizer: adam"
            raise UserError(
                f"learner.gradient: expected unrolled or checkpointed with {given}, since implicit "
                "needs steps that are linear in the gradient, of one rate. Take checkpointed, "
                "which needs no more memory."
            )
        return self

    @property
    def rematerializes(self) -> bool:
        return self.gradient != "unrolled"

    @property
    def has_per_step_params(self) -> bool:
        # "implicit" takes all steps for alike.
        return self.inner_steps > 0 and self.gradient != "implicit"

    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        if steps is None:
            steps = self.inner_steps
        if self.gradient == "unrolled" or not steps:
            path = self.path(model, params, support, objective, first_order=self.first_order)
            return next(islice(path, steps, None))
        loss = self.support_loss(model, objective)
        if self.gradient == "checkpointed":
            phi = self._checkpointed(loss, params, support, steps)
        else:
            phi = self._implicit(loss, params, support, steps)
        return self.fitted(params, phi)

    def _checkpointed(
        self, loss: SupportLoss, params: Params, support: Batch, steps: int
    ) -> dict[str, Tensor]:
        def step(state: InnerState, params: Params, support: Batch, index: int) -> InnerState:
            return inner_step(
                lambda phi: loss(phi, params, support),
                state,
                self.rates(params, index),
                index,
                optimizer=self.inner_optimizer,
            )

        start = inner_start(self.start(params), self.inner_optimizer)
        return checkpointed(step, start, params, support, steps).phi

    def _implicit(
        self, loss: SupportLoss, params: Params, support: Batch, steps: int
    ) -> dict[str, Tensor]:
        def find(theta: Params, params: Params, support: Batch) -> Params:
            return inner_loop(
                lambda phi: loss(phi, params, support),
                theta,
                dict.fromkeys(theta, self.inner_lr),
                steps,
                first_order=True,
                optimizer=self.inner_optimizer,
            )

        if self.inner_optimizer == "momentum":
            momentum = MOMENTUM
        else:
            momentum = 0.0
        back = through_equal_steps(self.inner_lr, momentum, steps, self.curvature_products)
        return implicit(loss, find, back, self.start(params), params, support)
