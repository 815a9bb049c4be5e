"""Implicit gradients: the curvature where an inner loop arrives, without the path to it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.func import grad, vjp
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from raymtl.types import Batch, Params

Product = Callable[[Tensor], Tensor]
"""x [P] -> H x, H the Hessian of the loss where the loop arrived."""

Back = Callable[[Product, Tensor], tuple[Tensor, Tensor]]
"""(product, the gradient for phi) -> that for theta, and u: that for anything w in the loss is (d
grad L / dw)^T u.
"""


def implicit(
    loss: Callable[[Params, Params, Batch], Tensor],
    find: Callable[[Params, Params, Batch], Params],
    back: Back,
    theta: Params,
    params: Params,
    support: Batch,
) -> dict[str, Tensor]:
    """phi = find(theta, params, support), with the gradient that `back` computes at phi.

    The gradient reaches `theta`, `support` and those of `params` that theta does not name, so
    `loss` and `find` must not depend on any other tensor that it should reach. All runs in the
    parameters' precision, whatever that of the layers, so that the backward pass takes the
    curvature of the function that was minimised.
    """
    given = {name: value for name, value in params.items() if name not in theta}
    leaves, tree = tree_flatten((dict(theta), given, support))
    return dict(zip(theta, _Arrived.apply(_Inner(loss, find, back, tree), *leaves), strict=True))


class _Inner(NamedTuple):
    """The inner problem, but for its tensors: these have to pass through autograd one by one."""

    loss: Callable[[Params, Params, Batch], Tensor]
    find: Callable[[Params, Params, Batch], Params]
    back: Back
    tree: TreeSpec

    def pull_back(
        self, phi: Params, given: Params, support: Batch, cotangent: Params
    ) -> tuple[Params, Params]:
        """The gradients for theta and for the floating-point values of `given`."""
        followed = {name: value for name, value in given.items() if value.is_floating_point()}

        def slope(phi: Params, followed: Params) -> Params:
            slopes: Params = grad(self.loss)(phi, {**given, **followed}, support)
            return slopes

        pull = vjp(slope, dict(phi), followed)[1]
        sizes = [value.numel() for value in phi.values()]

        def named(flat: Tensor) -> dict[str, Tensor]:
            pieces = zip(phi.items(), flat.split(sizes), strict=True)
            return {name: piece.view_as(value) for (name, value), piece in pieces}

        def flat(values: Params) -> Tensor:
            return torch.cat([values[name].flatten() for name in phi])

        for_theta, u = self.back(lambda x: flat(pull(named(x))[0]), flat(cotangent))
        return named(for_theta), pull(named(u))[1]


class _Arrived(Function):
    """(inner, leaves of (theta, given, support)) -> phi, one tensor for each of theta."""

    generate_vmap_rule = True

    @staticmethod
    def forward(inner: _Inner, *leaves: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(leaves[0].device.type, enabled=False):
            return tuple(inner.find(*tree_unflatten(leaves, inner.tree)).values())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.inner, *leaves = inputs
        ctx.save_for_backward(*leaves, *output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        inner, saved = ctx.inner, ctx.saved_tensors
        theta, given, support = tree_unflatten(saved[: -len(cotangents)], inner.tree)
        phi = dict(zip(theta, saved[-len(cotangents) :], strict=True))
        for_theta, followed = inner.pull_back(
            phi, given, support, dict(zip(theta, cotangents, strict=True))
        )
        gradients = [*for_theta.values(), *(followed.get(name) for name in given)]
        return None, *gradients, *[None] * (len(saved) - len(cotangents) - len(gradients))


def to_a_minimum(strength: float, cg_steps: int) -> Back:
    """For phi = argmin L + strength/2 |phi - theta|^2, by the implicit function theorem.

    From grad L(phi, w) + lambda (phi - theta) = 0: for theta x = (I + H/lambda)^-1 cotangent, and u
    = -x/lambda.
    """

    def back(product: Product, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        x = conjugate_gradients(lambda x: x + product(x) / strength, cotangent, cg_steps)
        return x, -x / strength

    return back


def through_equal_steps(rate: float, momentum: float, steps: int, products: int) -> Back:
    """For v <- momentum v + grad L(phi), phi <- phi - rate v, `steps` times from theta on, with H
    the same in all.

    For theta (I - rate H)^steps cotangent without momentum, and the like with it: a polynomial in
    H, taken within the Krylov space of so many products. Exact for as many as H has different
    eigenvalues; its error falls as fast as that of conjugate gradients, and it needs no curvature
    to be positive.
    """

    def back(product: Product, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        basis, curvature = lanczos(product, cotangent, products)
        a = (
            basis @ cotangent
        )  # the gradient for phi_j, from j = steps down to 0, as coordinates in the basis
        v = u = torch.zeros_like(a)
        for _ in range(steps):
            v = momentum * v - rate * a
            a, u = a + curvature @ v, u + v
        return a @ basis, u @ basis

    return back


def lanczos(product: Product, b: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """An orthonormal basis [n, P] of b, H b, ... H^(n-1) b, and H in it [n, n]; rows are 0 where
    none is new.
    """

    def unit(x: Tensor) -> Tensor:
        length = x.norm()
        # No branch: under vmap each episode stops on its own.
        return torch.where(length > 0, x / length, 0.0)

    basis, images = [unit(b)], [product(unit(b))]
    for _ in range(min(steps, len(b)) - 1):
        rows, new = torch.stack(basis), images[-1]
        for _ in range(
            2
        ):  # once leaves a part of the order of the rounding over the length of what remains
            new = new - (rows @ new) @ rows
        # What is but rounding would come back as a direction of its own.
        small = new.norm() <= torch.finfo(new.dtype).eps * len(b) ** 0.5 * images[-1].norm()
        basis.append(torch.where(small, 0.0, unit(new)))
        images.append(product(basis[-1]))
    rows = torch.stack(basis)
    curvature = rows @ torch.stack(images).T
    return rows, (curvature + curvature.T) / 2


def conjugate_gradients(apply: Product, b: Tensor, steps: int) -> Tensor:
    """Solves apply(x) = b for x [P] from x = b on, `apply` symmetric; exact after P steps where it
    is positive.
    """
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
