"""iMAML, implicit gradients (Rajeswaran et al., 2019, arXiv:1909.04630).

phi* = argmin over phi of L_S(phi) + lambda/2 |phi - theta|^2; the meta-gradient is (I + H/lambda)^-1 grad L_Q(phi*),
H the Hessian of L_S at phi*.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor
from torch.autograd import Function
from torch.func import grad, vjp
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from raymtl.learners.base import Objective
from raymtl.learners.inner import GradientLearner, InnerOptimizer, inner_loop
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params


class IMAML(GradientLearner):
    """Fits the model near its initialisation, with a gradient that does not pass through the steps but their goal.

    `inner_steps` steps go down L_S + strength/2 |phi - theta|^2, `strength` being the paper's lambda. Memory does not
    grow with them, so they may be many; the gradient is exact where they have arrived and `cg_steps` of conjugate
    gradients solve the linear system, each at the cost of a Hessian-vector product and a task's gradient at a time.
    The solution starts from grad L_Q(phi*) itself, so with `cg_steps: 0` that is the meta-gradient, and stays where
    it is once the curvature is not positive, as it can be where L_S is not convex. The weighting's own parameters get
    their implicit gradient too. Without any inner step it is plain multi-task training, as maml. With ReLU a goal can
    lie on a kink, around which the steps go back and forth: the gradient is then that of the side they end on. The
    inner loop runs in the parameters' precision, whatever `train.precision`.
    """

    name: Literal["imaml"] = "imaml"
    helps: ClassVar[str] = "the inner loop is long: memory is that of one step"
    costs: ClassVar[str] = "k gradients of first order, and 2 gradients for each of cg_steps"
    inner_steps: NonNegativeInt = 10
    strength: PositiveFloat = 2.0
    cg_steps: NonNegativeInt = 5

    def adapt(
        self, model: SharingArchitecture, params: Params, support: Batch, objective: Objective, steps: int | None = None
    ) -> Params:
        steps = self.inner_steps if steps is None else steps
        if steps == 0:
            return params
        theta = self.start(params)
        fixed = {name: value for name, value in params.items() if name not in theta}

        def loss(phi: Params, fixed: Params, support: Batch) -> Tensor:
            return objective(fixed, self.predict(model, phi, support.inputs), support)

        leaves, tree = tree_flatten((theta, fixed, support))
        rates = dict.fromkeys(theta, self.inner_lr)
        inner = _Inner(loss, rates, steps, self.inner_optimizer, self.strength, self.cg_steps, tree)
        return {**params, **dict(zip(theta, _Minimum.apply(inner, *leaves), strict=True))}


class _Inner(NamedTuple):
    """The inner problem, but for its tensors: these have to pass through autograd one by one."""

    loss: Callable[[Params, Params, Batch], Tensor]
    rates: Mapping[str, float]
    steps: int
    optimizer: InnerOptimizer
    strength: float
    cg_steps: int
    tree: TreeSpec

    def minimum(self, theta: Params, fixed: Params, support: Batch) -> Params:
        """phi*, as near as the steps come."""

        def regularised(phi: Params) -> Tensor:
            distance = torch.stack([(phi[name] - start).square().sum() for name, start in theta.items()]).sum()
            return self.loss(phi, fixed, support) + self.strength / 2 * distance

        return inner_loop(regularised, theta, self.rates, self.steps, first_order=True, optimizer=self.optimizer)

    def pull_back(self, phi: Params, fixed: Params, support: Batch, cotangent: Params) -> tuple[Params, Params]:
        """The gradients for theta and for `fixed`, given that for phi*.

        By the implicit function theorem on grad L_S(phi, fixed) + lambda (phi - theta) = 0: that for theta is
        x = (I + H/lambda)^-1 cotangent, that for `fixed` the transpose of d(grad L_S)/d(fixed) at -x/lambda.
        """
        pull = vjp(lambda phi, fixed: grad(self.loss)(phi, fixed, support), dict(phi), dict(fixed))[1]
        sizes = [value.numel() for value in phi.values()]

        def named(flat: Tensor) -> dict[str, Tensor]:
            parts = zip(phi.items(), flat.split(sizes), strict=True)
            return {name: part.view_as(value) for (name, value), part in parts}

        def flat(values: Params) -> Tensor:
            return torch.cat([values[name].flatten() for name in phi])

        def curvature(x: Tensor) -> Tensor:
            return x + flat(pull(named(x))[0]) / self.strength

        x = named(conjugate_gradients(curvature, flat(cotangent), self.cg_steps))
        _, for_fixed = pull({name: -value / self.strength for name, value in x.items()})
        return x, for_fixed


class _Minimum(Function):
    """(inner, leaves of (theta, fixed, support)) -> phi*, one tensor for each of theta."""

    generate_vmap_rule = True

    @staticmethod
    def forward(inner: _Inner, *leaves: Tensor) -> tuple[Tensor, ...]:
        # The curvature is taken in full precision, where the backward pass runs: at a goal of the same function.
        with torch.autocast(leaves[0].device.type, enabled=False):
            return tuple(inner.minimum(*tree_unflatten(leaves, inner.tree)).values())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.inner, *leaves = inputs
        ctx.save_for_backward(*leaves, *output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        inner, saved = ctx.inner, ctx.saved_tensors
        theta, fixed, support = tree_unflatten(saved[: -len(cotangents)], inner.tree)
        phi = dict(zip(theta, saved[-len(cotangents) :], strict=True))
        for_theta, for_fixed = inner.pull_back(phi, fixed, support, dict(zip(theta, cotangents, strict=True)))
        gradients = [*for_theta.values(), *for_fixed.values()]
        return None, *gradients, *[None] * (len(saved) - len(cotangents) - len(gradients))


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> Tensor:
    """Solves apply(x) = b for x [P] from x = b on, `apply` symmetric; exact after P steps where it is positive."""
    x = b
    residual = b - apply(b)
    direction, norm = residual, residual @ residual
    going = norm > 0
    for _ in range(steps):
        image = apply(direction)
        curvature = direction @ image
        # No branch: under vmap each episode stops on its own.
        going = going & (curvature > 0)
        length = torch.where(going, norm / curvature, 0.0)
        x, residual = x + length * direction, residual - length * image
        norm, previous = residual @ residual, norm
        direction = residual + torch.where(going, norm / previous, 0.0) * direction
    return x
