"""Laws of the weightings, over the whole union."""

import pytest
import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.schema.names import members
from raymtl.tasks import classification, regression
from raymtl.types import DivergedError, Task
from raymtl.weighting import Weighting
from raymtl.weighting.base import WeightingSpecBase
from tests.narrowing import checked
from tests.weighting import Rows, weigh

TASKS = (classification("a", 4), regression("b", 0.0, 1.0), classification("c", 3))
# Read off the union, so that a new member is tested on arrival.
SPECS: dict[str, WeightingSpecBase] = {
    name: checked(member(), WeightingSpecBase)  # type: ignore[type-abstract]
    for name, member in members("weighting", Experiment).items()
}
OF_GRADIENTS = sorted(name for name, spec in SPECS.items() if spec.needs_gradients)
SOLVED = sorted(
    set(OF_GRADIENTS) - {"auto_lambda", "db_mtl", "excess_mtl", "graddrop", "gradnorm"}
)  # in float64 on the CPU
over_the_union = pytest.mark.parametrize("name", SPECS)
float64 = pytest.mark.usefixtures("float64")


def step(
    module: Weighting, losses: Tensor, rows: Tensor, tasks: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Weights [K] and the joint gradient [P] of one outer step, and the look back after it."""
    losses, jacobian = losses.clone().requires_grad_(), Rows(rows)
    indices = None if tasks is None else torch.tensor(tasks)
    weights = weigh(module, losses, jacobian, indices)
    if weights.ndim == 0:
        (weights,) = torch.autograd.grad(weights, losses)
    present = torch.arange(module.num_tasks) if indices is None else indices
    module.update_after_step(losses.detach(), 0.9 * losses.detach() + 0.01, present)
    return weights.detach(), weights.detach().to(rows) @ jacobian.matrix


def batch(seed: int, size: int = 3, width: int = 6) -> tuple[Tensor, Tensor]:
    """Losses [K] and rows [K, P]; some of the rows conflict."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, generator=generator) + 0.1, torch.randn(
        size, width, generator=generator
    )


def build(name: str, tasks: tuple[Task, ...] = TASKS) -> Weighting:
    assert SPECS[name].check([task.name for task in tasks]) is None
    return SPECS[name].build(tasks)


@float64
@over_the_union
def test_weights_are_permutation_equivariant(name: str) -> None:
    """Over two tasks, where a random order of projections has no say."""
    one, other = build(name), build(name)
    for seed in range(4):
        losses, rows = batch(seed, size=2)
        here, joint = step(one, losses, rows, [0, 2])
        there, same = step(other, losses.flip(0), rows.flip(0), [2, 0])
        torch.testing.assert_close(there, here.flip(0))
        torch.testing.assert_close(same, joint)


@float64
@pytest.mark.parametrize("name", sorted(SPECS.keys() - {"random"}))
def test_permuting_the_tasks_permutes_the_weights(name: str) -> None:
    """All but random weights, which belong to the place of a task."""
    one, other = build(name, TASKS[:2]), build(name, TASKS[1::-1])
    for seed in range(4):
        losses, rows = batch(seed, size=2)
        here, joint = step(one, losses, rows)
        there, same = step(other, losses.flip(0), rows.flip(0))
        torch.testing.assert_close(there, here.flip(0))
        torch.testing.assert_close(same, joint)


@float64
@pytest.mark.parametrize("name", sorted(SPECS.keys() - {"random"}))
def test_an_unlabelled_task_leaves_the_others_alone(name: str) -> None:
    """All but random weights, which belong to the place of a task."""
    among, alone = (
        build(name, (*TASKS, regression("d", 0.0, 1.0))),
        build(name, (*TASKS[:1], *TASKS[2:], TASKS[1])),
    )
    for seed in range(4):
        losses, rows = batch(seed)
        found, joint = step(among, losses, rows, [0, 2, 1])
        expected, same = step(alone, losses, rows)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(joint, same)


@float64
@over_the_union
def test_an_unlabelled_task_keeps_its_state(name: str) -> None:
    module = build(name)
    for seed in range(3):
        step(module, *batch(seed))
    old = module.state()
    step(module, *batch(3, size=2), [2, 0])
    for key, value in module.named_buffers():
        if value.ndim:
            assert torch.equal(value[1], old[key][1]), key
        if value.shape[:2] == (3, 3) and name == "gradvac":
            assert torch.equal(value[:, 1], old[key][:, 1])


@float64
@pytest.mark.parametrize("tasks", [TASKS[:1], TASKS], ids=["alone", "among others"])
@pytest.mark.parametrize("name", sorted(SPECS.keys() - {"nash_mtl", "fairgrad"}))
def test_a_task_alone_keeps_its_losss_weight(name: str, tasks: tuple[Task, ...]) -> None:
    """All but Nash-MTL and FairGrad, whose weights depend on the length of the gradient."""
    weights, _ = step(build(name, tasks), torch.tensor([2.0]), torch.tensor([[3.0, -4.0]]), [0])
    torch.testing.assert_close(weights, torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "rows", [[[1.0, 2], [0, 0], [-1, 0.5]], [[0.0, 0], [0, 0], [0, 0]], [[0.0, 0]]]
)
@over_the_union
def test_gradients_that_are_zero_give_finite_weights(
    name: str, rows: list[list[float]], dtype: torch.dtype
) -> None:
    module, given = build(name, TASKS[: len(rows)]), torch.tensor(rows, dtype=dtype)
    for _ in range(3):
        weights, joint = step(module, torch.ones(len(rows), dtype=dtype), given)
        assert weights.isfinite().all() and joint.isfinite().all()
    if len(rows) == 1:
        torch.testing.assert_close(weights.to(dtype), torch.ones(1, dtype=dtype))


@pytest.mark.parametrize("name", OF_GRADIENTS)
def test_dependent_gradients_give_finite_weights(
    name: str,
) -> None:
    """More tasks than coordinates: no set of such gradients is linearly independent."""
    for rows in (
        [[3.0, 4.0], [-3.0, -4.0]],
        [[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]],
        [[1.0], [-2.0], [4.0]],
    ):
        given = torch.tensor(rows)
        weights, joint = step(build(name, TASKS[: len(rows)]), torch.ones(len(rows)), given)
        assert weights.isfinite().all()
        assert joint.norm() <= 3 * given.norm()


@float64
@over_the_union
def test_weights_of_the_inner_loop_move_no_state(name: str) -> None:
    module = build(name)
    for seed in range(3):
        step(module, *batch(seed))
        old = module.state()
        assert module().shape == (3,) and module().isfinite().all()
        assert all(torch.equal(value, old[key]) for key, value in module.named_buffers())


@float64
@over_the_union
def test_state_that_is_assigned_goes_on_exactly(name: str) -> None:
    one, other = build(name), build(name)
    for seed in range(4):
        step(one, *batch(seed))
    for key, value in one.state().items():
        setattr(other, key, value)
    other.load_state_dict(dict(one.named_parameters()), strict=False)
    torch.manual_seed(99)
    for seed in range(4, 7):
        expected, joint = step(one, *batch(seed))
        found, same = step(other, *batch(seed))
        assert torch.equal(found, expected) and torch.equal(same, joint)


@pytest.mark.parametrize("name", sorted(SPECS.keys() - {"static"}))
def test_weights_keep_the_precision_of_their_inputs(name: str) -> None:
    """All but constant weights, which have their own."""
    coarse, fine = build(name), build(name)
    for seed in range(3):
        losses, rows = batch(seed)
        in_32, _ = step(coarse, losses, rows)
        in_64, _ = step(fine, losses.double(), rows.double())
        assert (in_32.dtype, in_64.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(in_32.double(), in_64, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(SPECS.keys() - set(OF_GRADIENTS)))
def test_methods_that_weigh_losses_ask_for_no_gradients(name: str) -> None:
    assert build(name)(torch.rand(3) + 0.1, None).shape in ((), (3,))


@float64
@pytest.mark.parametrize("name", ["graddrop", *sorted(set(SOLVED) - {"nash_mtl", "fairgrad"})])
def test_equal_gradients_give_their_plain_sum(name: str) -> None:
    """So that a learning rate means under every method what it means under equal weights."""
    rows = torch.randn(6).expand(3, 6)
    _, joint = step(build(name), torch.ones(3), rows)
    torch.testing.assert_close(joint, rows.sum(0))


@float64
@pytest.mark.parametrize("size", [2, 5, 20])
@pytest.mark.parametrize(
    "name", ["config", "dualproj", "fairgrad", "imtl_g", "mgda", "nash_mtl", "upgrad"]
)
def test_conflict_free_methods_conflict_with_no_gradient(name: str, size: int) -> None:
    tasks = tuple(regression(f"task_{index}", 0.0, 1.0) for index in range(size))
    for seed in range(20):
        losses, rows = batch(seed, size, width=size + 3)
        rows[1] = 0.1 * rows[1] - rows[0]
        _, joint = step(build(name, tasks), losses, rows)
        assert (rows @ joint > -1e-10 * rows.norm(dim=1) * joint.norm()).all()


@float64
@pytest.mark.parametrize("name", ["config", "imtl_g", "nash_mtl"])
def test_loss_units_leave_the_direction_alone(name: str) -> None:
    """Also of more tasks than coordinates, but for Nash-MTL, which then has no solution."""
    for seed, width in [(0, 6), (1, 6), (2, 4), (3, 2)]:
        if width < 3 and name == "nash_mtl":
            continue
        losses, rows = batch(seed, width=width)
        units = torch.tensor([1.0, 1e3, 1e-2])
        _, here = step(build(name), losses, rows)
        _, there = step(build(name), units * losses, units[:, None] * rows)
        torch.testing.assert_close(there / there.norm(), here / here.norm())


@pytest.mark.parametrize("name", SOLVED)
def test_a_gradient_that_is_not_finite_is_refused(name: str) -> None:
    with pytest.raises(DivergedError, match="gradient"):
        step(build(name), torch.ones(3), torch.tensor([[1.0, 2.0], [torch.inf, 0.0], [0.5, 1.0]]))


@float64
@pytest.mark.parametrize("name", SOLVED)
def test_the_gramian_is_left_as_it_is(name: str) -> None:
    gramian = batch(0)[1] @ batch(0)[1].T
    old = gramian.clone()

    class Given(Rows):
        def gramian(self) -> Tensor:
            return gramian

    build(name)(torch.ones(3), Given(batch(0)[1]))
    assert torch.equal(gramian, old)
