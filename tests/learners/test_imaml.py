"""iMAML against closed forms, a linear solver, and finite differences of what it converges to."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from raymtl.learners import IMAML
from raymtl.learners.implicit import conjugate_gradients
from raymtl.learners.inner import InnerOptimizer
from raymtl.step.meta_gradient import meta_gradient
from tests.conftest import axes, episodes_of, experiment, perturbed
from tests.learners.laws import first
from tests.learners.test_learners import DIM, Quadratic

pytestmark = pytest.mark.usefixtures("float64")


def closed_form(quadratic: Quadratic, start: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """grad L_Q at phi* = (A + lambda)^-1 (A a + lambda theta), and (I + A/lambda)^-1 of it."""
    eye = torch.eye(DIM)
    minimum = torch.linalg.solve(
        quadratic.A + strength * eye, quadratic.A @ quadratic.a + strength * start
    )
    outer = quadratic.B @ (minimum - quadratic.b)
    return outer, torch.linalg.solve(eye + quadratic.A / strength, outer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strength", "optimizer", "steps"),
    [(0.3, "sgd", 400), (2.0, "sgd", 200), (20.0, "sgd", 60), (2.0, "momentum", 550)],
)
def test_it_equals_the_closed_form_on_a_quadratic(
    strength: float, optimizer: InnerOptimizer, steps: int
) -> None:
    """With momentum it takes longer: its coefficient 0.9 lets an error fall by no more than sqrt(0.9) a step."""
    quadratic = Quadratic()
    rate = 1 / (strength + float(torch.linalg.matrix_norm(quadratic.A, 2)))
    learner = IMAML(
        inner_lr=rate, inner_steps=steps, inner_optimizer=optimizer, strength=strength, cg_steps=10
    )
    start, computed = quadratic.meta_gradient(learner)
    torch.testing.assert_close(
        computed, closed_form(quadratic, start, strength)[1], rtol=1e-10, atol=1e-12
    )


@pytest.mark.slow
def test_its_error_falls_with_the_steps() -> None:
    """Also with those of the conjugate gradients."""

    def error(seed: int, steps: int, cg_steps: int) -> float:
        torch.manual_seed(seed)
        quadratic = Quadratic()
        learner = IMAML(inner_lr=0.1, inner_steps=steps, strength=1.0, cg_steps=cg_steps)
        start, computed = quadratic.meta_gradient(learner)
        exact = closed_form(quadratic, start, 1.0)[1]
        return float((computed - exact).norm() / exact.norm())

    for seed in range(2):
        by_steps = [error(seed, steps, 10) for steps in (10, 40, 100)]
        by_cg = [error(seed, 200, cg_steps) for cg_steps in (0, 2, 5)]
        assert by_steps[0] > 2 * by_steps[1] > 20 * by_steps[2]
        assert by_cg[0] > 2 * by_cg[1] > 1e6 * by_cg[2]


def test_without_solving_the_gradient_is_first_order() -> None:
    """Without conjugate gradients it is the gradient at the fitted parameters."""
    quadratic = Quadratic()
    start, computed = quadratic.meta_gradient(
        IMAML(inner_lr=0.1, inner_steps=400, strength=2.0, cg_steps=0)
    )
    torch.testing.assert_close(
        computed, closed_form(quadratic, start, 2.0)[0], rtol=1e-10, atol=1e-12
    )


def test_without_steps_it_is_multi_task_training(arrays: dict[str, np.ndarray]) -> None:
    found = []
    for learner in ("imaml", "maml"):
        chosen = experiment(learner__name=learner, learner__inner_steps=0)
        algorithm = chosen.build()
        found.append(
            meta_gradient(algorithm, perturbed(algorithm), episodes_of(chosen, arrays)).grads
        )
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["hard", "cross_stitch"])
def test_the_implicit_gradient_is_that_of_convergence(
    sharing: str, arrays: dict[str, np.ndarray]
) -> None:
    """Of a task's query loss, for the model and for the weighting, whose weights are those of the inner loss."""
    chosen = axes(sharing, "uncertainty", "imaml").override(
        {
            "learner.inner_lr": 0.1,
            "learner.inner_steps": 90,
            "learner.strength": 3.0,
            "learner.cg_steps": 30,
        }
    )
    algorithm = chosen.build()
    for module in list(algorithm.model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):  # a minimum on its kink is no stationary point
                setattr(module, name, nn.Tanh())
    params = perturbed(algorithm)
    support, query = first(episodes_of(chosen, arrays))
    generator = torch.Generator().manual_seed(7)

    def loss(shift: float, direction: dict[str, Tensor]) -> Tensor:
        moved = {name: value + shift * direction.get(name, 0) for name, value in params.items()}
        predictions = algorithm.predict(algorithm.adapt(moved, support), query.inputs)
        return algorithm.tasks[0].loss(predictions["left"], query.targets["left"]).mean()

    grads = torch.autograd.grad(loss(0.0, {}), list(params.values()), allow_unused=True)
    found = dict(zip(params, grads, strict=True))
    for prefix in ("model.", "weighting."):
        direction = {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in params.items() if n.startswith(prefix)}  # fmt: skip
        computed = sum((found[name] * direction[name]).sum() for name in direction)
        with torch.no_grad():
            numeric = (loss(1e-5, direction) - loss(-1e-5, direction)) / 2e-5
        assert numeric.abs() > 1e-4
        torch.testing.assert_close(computed, numeric, rtol=1e-5, atol=1e-9)


def test_conjugate_gradients_equal_a_factorisation() -> None:
    """Batched by vmap, one of them already solved: b is an eigenvector of 1."""
    roots = torch.randn(4, DIM, DIM)
    matrices = torch.eye(DIM) + roots @ roots.mT
    matrices[3] = torch.diag(torch.tensor([1.0, 2, 3, 4, 5]))
    b = torch.randn(4, DIM)
    b[3] = torch.eye(DIM)[0]
    found = vmap(lambda m, v: conjugate_gradients(lambda x: m @ x, v, 12))(matrices, b)
    torch.testing.assert_close(found, torch.linalg.solve(matrices, b), rtol=1e-10, atol=1e-12)
    assert torch.equal(found[3], b[3])


def test_conjugate_gradients_stop_at_negative_curvature() -> None:
    b = torch.randn(DIM)
    assert torch.equal(conjugate_gradients(lambda x: -2 * x, b, 5), b)
    assert torch.equal(conjugate_gradients(lambda x: 3 * x, b, 0), b)


def test_the_graph_does_not_grow_with_the_steps(arrays: dict[str, np.ndarray]) -> None:
    def nodes(name: str, steps: int) -> int:
        chosen = experiment(learner__name=name, learner__inner_steps=steps)
        algorithm = chosen.build()
        adapted = algorithm.adapt(
            algorithm.init_params(), first(episodes_of(chosen, arrays)).support
        )
        seen, todo = (
            set(),
            [value.grad_fn for name, value in adapted.items() if name.startswith("model.")],
        )
        while todo:
            node = todo.pop()
            if node is not None and node not in seen:
                seen.add(node)
                todo.extend(parent for parent, _ in node.next_functions)
        return len(seen)

    assert nodes("imaml", 5) == nodes("imaml", 50) < nodes("maml", 5) / 10


def test_task_rows_add_up_to_the_sum(
    arrays: dict[str, np.ndarray],
) -> None:
    """Each row is a linear system of its own, solved with the same matrix; solved to the end the map is linear."""
    found = []
    for weighting in ("equal", "graddrop"):
        chosen = axes("hard", weighting, "imaml").override(
            {"learner.cg_steps": 60, "encoder.hidden": [3], "learner.strength": 5.0}
        )
        if weighting == "graddrop":  # lets all of every row pass
            chosen = chosen.override({"weighting.leak": 1.0})
        algorithm = chosen.build()
        found.append(
            meta_gradient(algorithm, perturbed(algorithm), episodes_of(chosen, arrays)).grads
        )
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-7, atol=1e-10)
