"""FairGrad: the paper's equation, closed forms and its two neighbours."""

import pytest
import torch
from pydantic import ValidationError

from raymtl.weighting import FairGradSpec, NashMTLSpec
from raymtl.weighting.fairgrad import fair
from tests.weighting import Rows, regressions, weigh

TASKS = regressions(map(str, range(40)))
pytestmark = pytest.mark.usefixtures("float64")


def weights_of(rows: torch.Tensor, alpha: float) -> torch.Tensor:
    module = FairGradSpec(alpha=alpha).build(TASKS[: len(rows)])
    return weigh(module, torch.ones(len(rows)), Rows(rows))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0, 10.0])
@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_weights_solve_the_papers_equation(size: int, alpha: float) -> None:
    rows = torch.randn(size, size + 2) * 10 ** torch.rand(size, 1)
    weights = weights_of(rows, alpha)
    assert (weights > 0).all()
    torch.testing.assert_close(
        (rows @ (weights @ rows)) * weights ** (1 / alpha), torch.ones(size), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0])
def test_orthogonal_gradients_have_a_closed_form(alpha: float) -> None:
    lengths = torch.tensor([0.5, 2.0, 30.0])
    torch.testing.assert_close(
        weights_of(torch.diag(lengths), alpha), lengths ** (-2 * alpha / (1 + alpha))
    )


def test_at_alpha_1_it_is_nash_mtl() -> None:
    rows = torch.randn(5, 7)
    torch.testing.assert_close(
        weights_of(rows, 1.0), NashMTLSpec().build(TASKS[:5])(torch.ones(5), Rows(rows))
    )


def test_larger_alpha_makes_gains_more_equal() -> None:
    rows = torch.randn(4, 6) * torch.tensor([[1.0], [3.0], [0.3], [1.0]])
    spreads = []
    for alpha in (0.5, 1.0, 2.0, 5.0, 10.0):
        gains = rows @ (weights_of(rows, alpha) @ rows)
        spreads.append(float(gains.max() / gains.min()))
    assert spreads == sorted(spreads, reverse=True)


def test_a_failed_solver_names_method_and_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raymtl.weighting.fairgrad.MAX_STEPS", 2)
    rows = torch.randn(3, 5)
    with pytest.raises(RuntimeError, match=r"fairgrad: .* 3 tasks.* weighting\.name"):
        fair((rows @ rows.T).numpy(), 1e-15, 2.0, "fairgrad")


@pytest.mark.parametrize("alpha", [0.0, 0.4, 11.0])
def test_an_alpha_beyond_the_gramians_digits_is_refused(alpha: float) -> None:
    with pytest.raises(ValidationError):
        FairGradSpec(alpha=alpha)
