"""Long inner loops: what recomputes its steps, and what looks only at where it arrives, against the unrolled gradient."""

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from raymtl.config import Experiment
from raymtl.data.base import Arrays
from raymtl.learners import MAML
from raymtl.learners.implicit import implicit, lanczos, through_equal_steps
from raymtl.learners.inner import InnerOptimizer, inner_loop
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, TaskAxis
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import Batch, Episode, Params, UserError
from tests.conftest import axes, episodes_of, experiment, perturbed, with_missing_labels
from tests.learners.laws import assert_it_survives_saving, assert_vmap_equals_the_loop
from tests.learners.test_learners import DIM, Quadratic

float64 = pytest.mark.usefixtures("float64")

LEARNERS = [
    ("maml", {}),
    ("maml", {"learner.inner_optimizer": "momentum"}),
    ("maml", {"learner.inner_optimizer": "adam"}),
    ("maml", {"learner.learn_inner_lr": True}),
    ("anil", {}),
    ("boil", {}),
    ("cavia", {}),
    ("meta_sgd", {}),
    ("proto_maml", {}),
    ("t_net", {}),
]


def gradients(
    chosen: Experiment, episodes: Episode, execution: ExecutionConfig | None = None
) -> dict[str, Tensor]:
    execution = execution or ExecutionConfig()
    algorithm = chosen.build()
    return meta_gradient(algorithm, perturbed(algorithm), episodes, execution=execution).grads


@float64
@pytest.mark.parametrize(
    ("learner", "values", "axis"),
    # An episode is recomputed alike in vmap and in a loop, whatever the learner's steps are.
    [("maml", {}, "loop"), *((learner, values, "vmap") for learner, values in LEARNERS)],
)
def test_recomputed_steps_have_the_unrolled_gradient(
    learner: str, values: dict[str, Any], axis: TaskAxis, arrays: dict[str, np.ndarray]
) -> None:
    """For the model, the weighting's parameters and learned rates; seven steps are segments of three, three and one."""
    chosen = axes("cross_stitch", "uncertainty", learner).override(
        {"learner.inner_steps": 7, **values}
    )
    episodes = with_missing_labels(episodes_of(chosen, arrays))
    exact = gradients(chosen, episodes, ExecutionConfig(axis))
    computed = gradients(
        chosen.override({"learner.gradient": "checkpointed"}), episodes, ExecutionConfig(axis)
    )
    assert any(name.startswith("learner.") for name in exact) == any(
        name.startswith("learner.") for name in computed
    )
    for name, gradient in exact.items():
        torch.testing.assert_close(computed[name], gradient, rtol=1e-10, atol=1e-12)
    weights = [name for name in exact if name.startswith("weighting.")]
    assert weights and all(exact[name].abs().max() > 1e-6 for name in weights)


@float64
@pytest.mark.parametrize("steps", [1, 2, 4, 5])
def test_whatever_the_number_of_steps(steps: int, arrays: dict[str, np.ndarray]) -> None:
    chosen = experiment(data__tasks=["left", "sum"], learner__inner_steps=steps)
    episodes = episodes_of(chosen, arrays)
    exact = gradients(chosen, episodes)
    for name, gradient in gradients(
        chosen.override({"learner.gradient": "checkpointed"}), episodes
    ).items():
        torch.testing.assert_close(gradient, exact[name], rtol=1e-10, atol=1e-12)


@float64
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("weighting", ["random", "graddrop", "gls", "stch"])
def test_recomputed_steps_see_the_same_weights(
    weighting: str, micro_batches: int, arrays: dict[str, np.ndarray]
) -> None:
    """Though the outer step has moved it, whole numbers included, when they are recomputed."""
    chosen = axes("hard", weighting, "maml")
    episodes = episodes_of(chosen, arrays)
    exact = gradients(chosen, episodes, ExecutionConfig(micro_batches=micro_batches))
    computed = gradients(
        chosen.override({"learner.gradient": "checkpointed"}),
        episodes,
        ExecutionConfig(micro_batches=micro_batches),
    )
    for name, gradient in exact.items():
        torch.testing.assert_close(computed[name], gradient, rtol=1e-10, atol=1e-12)


def test_recomputed_steps_keep_their_precision(
    arrays: dict[str, np.ndarray],
) -> None:
    """In bfloat16 a step that came back in float32 would be off in the second digit."""
    chosen = experiment(learner__inner_steps=4, data__tasks=["left", "right"])
    episodes = episodes_of(chosen, arrays)
    execution = ExecutionConfig(precision="bfloat16")
    exact = gradients(chosen, episodes, execution)
    computed = gradients(chosen.override({"learner.gradient": "checkpointed"}), episodes, execution)

    def flat(grads: Params) -> Tensor:
        return torch.cat([grads[name].flatten() for name in exact])

    assert (flat(computed) - flat(exact)).norm() < 2e-3 * flat(exact).norm()
    assert (flat(gradients(chosen, episodes)) - flat(exact)).norm() > 5e-3 * flat(exact).norm()


@float64
@pytest.mark.parametrize("gradient", ["checkpointed", "implicit"])
def test_vmap_equals_the_loop_with_labels_missing(
    gradient: str, arrays: dict[str, np.ndarray]
) -> None:
    assert_vmap_equals_the_loop(
        axes("hard", "pcgrad", "maml").override({"learner.gradient": gradient}), arrays
    )


@pytest.mark.parametrize("gradient", ["checkpointed", "implicit"])
def test_an_adapted_model_survives_saving(
    gradient: str, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    assert_it_survives_saving(experiment(learner__gradient=gradient), arrays, tmp_path)


@pytest.mark.slow
@float64
@pytest.mark.parametrize("gradient", ["checkpointed", "implicit"])
@pytest.mark.parametrize(
    ("optimizer", "steps"), [("sgd", 1), ("sgd", 10), ("sgd", 200), ("momentum", 30)]
)
def test_on_a_quadratic_both_equal_the_closed_form(
    gradient: str, optimizer: str, steps: int
) -> None:
    """The curvature is the same all along, and in five dimensions five products see all of it."""
    quadratic, alpha = Quadratic(), 0.03
    learner = MAML(inner_lr=alpha, inner_steps=steps, inner_optimizer=optimizer, gradient=gradient)
    start, computed = quadratic.meta_gradient(learner)
    momentum = 0.9 if optimizer == "momentum" else 0.0
    phi, velocity, eye = start, torch.zeros(DIM), torch.eye(DIM)
    jacobian, of_velocity = eye, torch.zeros(DIM, DIM)
    for _ in range(steps):
        velocity = momentum * velocity + quadratic.A @ (phi - quadratic.a)
        of_velocity = momentum * of_velocity + quadratic.A @ jacobian
        phi, jacobian = phi - alpha * velocity, jacobian - alpha * of_velocity
    expected = jacobian.T @ quadratic.B @ (phi - quadratic.b)
    assert torch.linalg.norm(computed - expected) < 1e-10 * torch.linalg.norm(
        quadratic.B @ (phi - quadratic.b)
    )


@float64
def test_the_error_falls_with_the_products() -> None:
    """On a quadratic."""
    quadratic = Quadratic()
    exact = quadratic.meta_gradient(MAML(inner_lr=0.1, inner_steps=20))[1]
    errors = []
    for products in (1, 3, 5):
        learner = MAML(
            inner_lr=0.1, inner_steps=20, gradient="implicit", curvature_products=products
        )
        errors.append(float((quadratic.meta_gradient(learner)[1] - exact).norm() / exact.norm()))
    assert errors[0] > 0.01 and errors[0] > 3 * errors[1] > 1e6 * errors[2]


def without_kinks(algorithm: Algorithm) -> Algorithm:
    for module in list(algorithm.model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Tanh())
    return algorithm


def implicit_error(
    chosen: Experiment, arrays: Arrays, prefix: str, values: dict[str, Any] | None = None
) -> float:
    """Of the meta-gradient for the parameters under the prefix, against the unrolled one, relatively."""
    found = []
    for own in (chosen, chosen.override(values or {"learner.gradient": "implicit"})):
        algorithm = without_kinks(own.build())
        grads = meta_gradient(algorithm, perturbed(algorithm), episodes_of(own, arrays)).grads
        found.append(
            torch.cat([value.flatten() for name, value in grads.items() if name.startswith(prefix)])
        )
    return float((found[1] - found[0]).norm() / found[0].norm())


@float64
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_implicit_gradient_is_exact_at_convergence(momentum: float) -> None:
    """Of a convex loss whose curvature changes on the way: sum cosh(C phi - w) + |phi|^2 / 2."""
    mix, outer = torch.randn(4, 3), torch.randn(3)

    def loss(phi: Params, params: Params, support: Batch) -> Tensor:
        return (mix @ phi["phi"] - params["w"]).cosh().sum() + phi["phi"].square().sum() / 2

    def errors(steps: int) -> tuple[float, float]:
        theta, w = torch.ones(3, requires_grad=True), torch.linspace(-1, 1, 4).requires_grad_()
        optimizer: InnerOptimizer = "sgd"
        if momentum:
            optimizer = "momentum"

        def find(theta: Params, params: Params, support: Batch) -> dict[str, Tensor]:
            own_loss: Callable[[Params], Tensor] = lambda phi: loss(phi, params, support)  # noqa: E731
            return inner_loop(own_loss, theta, {"phi": 0.02}, steps, optimizer=optimizer)

        support = Batch(torch.zeros(1), {}, {})
        back = through_equal_steps(0.02, momentum, steps, 3)
        exact = find({"phi": theta}, {"w": w}, support)["phi"]
        arrived = implicit(loss, find, back, {"phi": theta}, {"w": w}, support)["phi"]
        assert torch.equal(arrived, exact)
        expected, computed = (
            torch.autograd.grad(phi @ outer, (theta, w)) for phi in (exact, arrived)
        )
        of_theta, of_w = (float((c - e).norm()) for c, e in zip(computed, expected, strict=True))
        return of_theta, of_w

    few, more, most = errors(5), errors(60), errors(500)
    for index in range(2):
        assert few[index] > 1e-3 and few[index] > more[index] > 1e3 * most[index]


@float64
@pytest.mark.parametrize(("learner", "bound"), [("anil", 0.03), ("maml", 0.09)])
def test_the_implicit_gradient_beats_first_order(
    learner: str, bound: float, arrays: dict[str, np.ndarray]
) -> None:
    """Ten steps of 0.05 on two episodes: a quarter of the error, which is stated so that it cannot grow unseen."""
    chosen = axes("hard", "uncertainty", learner).override(
        {"learner.inner_steps": 10, "train.meta_batch": 2}
    )
    error = implicit_error(chosen, arrays, "model.")
    assert error < bound
    assert error < implicit_error(chosen, arrays, "model.", {"learner.first_order": True}) / 4


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"learner.first_order": True}, "learner.first_order: true"),
        ({"learner.inner_optimizer": "adam"}, "inner_optimizer: adam"),
        ({"learner.learn_inner_lr": True}, "learned inner rates"),
        ({"learner.name": "meta_sgd"}, "learned inner rates"),
    ],
)
def test_what_it_cannot_be_combined_with_is_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        experiment(learner__gradient="implicit").override(values)


@float64
def test_the_krylov_basis_is_orthonormal() -> None:
    """Each episode on its own: the first starts from a sum of two eigenvectors, the last from nothing."""
    values = torch.arange(1.0, 7.0)
    rotation = torch.linalg.qr(torch.randn(6, 6))[0]
    matrix = rotation @ values.diag() @ rotation.T
    b = torch.stack([rotation[:, 0] + 2 * rotation[:, 3], torch.randn(6), torch.zeros(6)])
    basis, curvature = vmap(lambda b: lanczos(lambda x: matrix @ x, b, 6))(b)
    torch.testing.assert_close(basis[1] @ basis[1].T, torch.eye(6))
    torch.testing.assert_close(torch.linalg.eigvalsh(curvature[1]), values)
    torch.testing.assert_close(
        basis[0] @ basis[0].T, torch.diag(torch.tensor([1.0, 1, 0, 0, 0, 0]))
    )
    torch.testing.assert_close(
        torch.linalg.eigvalsh(curvature[0][:2, :2]), torch.tensor([1.0, 4.0])
    )
    assert not basis[2].any() and not curvature[2].any()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("gradient", ["checkpointed", "implicit"])
@pytest.mark.parametrize(("axis", "steps"), [("vmap", 200), ("loop", 50)])
def test_many_recomputed_steps_need_little_memory(axis: str, steps: int, gradient: str) -> None:
    """Two hundred steps of a convolutional network fit in the memory of five.

    One episode after another takes as long as all together, so fifty steps of each suffice there.
    What the system does with a process only adds to its peak, so the lowest of three counts.
    """
    five, ten = (peak("unrolled", few, axis) for few in (5, 10))
    assert five > 5, "the peak of a process counts too little to compare"
    assert five < ten / 1.5
    assert any(peak(gradient, steps, axis, attempt) < five for attempt in range(3))


@functools.cache
def peak(gradient: str, steps: int, axis: str, attempt: int = 0) -> float:
    """Megabytes that a training in a process of its own takes at most."""
    command = [sys.executable, "-m", "tests.learners.peak_memory", gradient, str(steps), axis, "2"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(printed.split(": ")[1].split()[0])
