"""Laws of the weightings over the whole union, and PCGrad against TorchJD and the paper's own loop."""

import itertools

import pytest
import torch
import torchjd.aggregation

from raymtl.tasks import classification, regression
from raymtl.weighting import PCGradSpec, StaticSpec, UncertaintySpec
from raymtl.weighting.pcgrad import project

KINDS = (classification("a", 4), regression("b", 0.0, 1.0), classification("c", 3))
SPECS = {"static": StaticSpec(weights={"a": 3.0, "b": 1.0}), "uncertainty": UncertaintySpec(), "pcgrad": PCGradSpec()}


def weights_of(module, losses, gramian):
    losses = losses.clone().requires_grad_()
    out = module(losses, lambda: gramian)
    return torch.autograd.grad(out, losses)[0] if out.ndim == 0 else out


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", SPECS)
def test_permuting_the_tasks_permutes_the_weights(name: str) -> None:
    """Over two tasks, where PCGrad's random order has no say."""
    rows, losses = torch.randn(2, 6), torch.rand(2)
    tasks = KINDS[:2]
    there = weights_of(SPECS[name].build(tasks), losses, rows @ rows.T)
    back = weights_of(SPECS[name].build(tasks[::-1]), losses.flip(0), rows.flip(0) @ rows.flip(0).T)
    torch.testing.assert_close(there, back.flip(0))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", SPECS)
def test_one_task_alone_has_the_weight_of_its_loss(name: str) -> None:
    weight = weights_of(SPECS[name].build(KINDS[:1]), torch.tensor([2.0]), torch.tensor([[4.0]]))
    torch.testing.assert_close(weight, torch.ones(1))


@pytest.mark.parametrize("name", SPECS)
def test_the_inner_loop_needs_no_gramian(name: str) -> None:
    module = SPECS[name].build(KINDS)
    out = module(torch.rand(3), None)
    assert out.shape in ((), (3,))


def test_static_weights_sum_to_the_number_of_tasks_and_keep_their_ratio() -> None:
    weights = StaticSpec(weights={"a": 3.0, "b": 1.0}).build(KINDS[:2])(torch.rand(2))
    torch.testing.assert_close(weights, torch.tensor([1.5, 0.5]))


@pytest.mark.usefixtures("float64")
def test_uncertainty_is_least_where_the_variance_is_the_loss() -> None:
    """Regression: d/ds (e^-s L / 2 + s / 2) = 0 at s = log L; classification: at s = log 2 L."""
    module = UncertaintySpec().build(KINDS[:2])
    losses = torch.tensor([0.3, 5.0])
    with torch.no_grad():
        module.log_variance.copy_(torch.tensor([2 * 0.3, 5.0]).log())
    (gradient,) = torch.autograd.grad(module(losses), [module.log_variance])
    torch.testing.assert_close(gradient, torch.zeros(2), atol=1e-12, rtol=0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed", range(20))
def test_pcgrad_equals_the_loop_of_the_paper(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = 2 + seed % 6
    rows = torch.randn(size, 9, generator=generator)
    order = torch.rand(size, size, generator=generator).argsort(1)
    projected = rows.clone()
    for i, j in itertools.product(range(size), range(size)):
        other = int(order[i, j])
        overlap = projected[i] @ rows[other]
        if other != i and overlap < 0:
            projected[i] -= overlap / (rows[other] @ rows[other]) * rows[other]
    torch.testing.assert_close(project(rows @ rows.T, order) @ rows, projected.sum(0))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed", range(20))
def test_pcgrad_agrees_with_torchjd(seed: int) -> None:
    """On two tasks, where the order has no say."""
    rows = torch.randn(2, 50, generator=torch.Generator().manual_seed(seed))
    ours = PCGradSpec().build(KINDS[:2])(torch.ones(2), lambda: rows @ rows.T) @ rows
    torch.testing.assert_close(ours, torchjd.aggregation.PCGrad()(rows), rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("float64")
def test_pcgrad_of_two_tasks_conflicts_with_neither() -> None:
    for seed in range(50):
        rows = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))
        joint = PCGradSpec().build(KINDS[:2])(torch.ones(2), lambda rows=rows: rows @ rows.T) @ rows
        assert (rows @ joint > -1e-12).all()


def test_pcgrad_passes_over_a_gradient_that_is_zero() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.5]])
    weights = PCGradSpec().build(KINDS)(torch.ones(3), lambda: rows @ rows.T)
    assert weights.isfinite().all()


def test_pcgrads_order_is_its_state_alone() -> None:
    rows = torch.tensor([[1.0, 0.0], [-0.5, 1.0], [-0.7, -0.9]])
    gramian = rows @ rows.T
    one, other = PCGradSpec().build(KINDS), PCGradSpec().build(KINDS)
    first = [one(torch.ones(3), lambda: gramian) for _ in range(8)]
    other.load_state_dict({"num_updates": torch.tensor(3)})
    torch.manual_seed(99)
    assert torch.equal(other(torch.ones(3), lambda: gramian), first[3])
    assert len({tuple(weights.tolist()) for weights in first}) > 1
