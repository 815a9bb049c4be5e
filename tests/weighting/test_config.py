"""ConFIG against the paper's formula on the rows themselves."""

import pytest
import torch

from raymtl.weighting import ConFIGSpec
from tests.weighting import Rows, regressions

TASKS = regressions("abcde")
pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("width", [7, 5, 3, 1])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_papers_formula_on_the_rows(seed: int, width: int) -> None:
    """Also with fewer coordinates than tasks, where the pseudo-inverse is a true one."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(5, width, generator=generator) * 10 ** torch.rand(5, 1, generator=generator)
    direction = torch.linalg.pinv(rows / rows.norm(dim=1, keepdim=True)) @ torch.ones(5)
    unit = direction / direction.norm()
    joint = ConFIGSpec().build(TASKS)(torch.ones(5), Rows(rows)) @ rows
    torch.testing.assert_close(joint, (rows @ unit).sum() * unit, rtol=1e-8, atol=1e-8)


def test_cosines_with_all_gradients_are_equal_and_positive() -> None:
    rows = torch.randn(5, 7) * 10 ** torch.rand(5, 1)
    joint = ConFIGSpec().build(TASKS)(torch.ones(5), Rows(rows)) @ rows
    cosines = rows @ joint / rows.norm(dim=1) / joint.norm()
    assert cosines[0] > 0
    torch.testing.assert_close(cosines, cosines[:1].expand(5))
    torch.testing.assert_close(joint.norm(), (cosines * rows.norm(dim=1)).sum())


def test_opposite_gradients_give_0() -> None:
    weights = ConFIGSpec().build(TASKS[:2])(
        torch.ones(2), Rows(torch.tensor([[3.0, 4.0], [-6.0, -8.0]]))
    )
    assert weights.tolist() == [0, 0]


def test_a_zero_gradient_leaves_the_others_alone() -> None:
    """The other tasks are weighed as if they were alone."""
    rows = torch.randn(3, 4)
    weights = ConFIGSpec().build(TASKS[:4])(
        torch.ones(4), Rows(torch.cat([torch.zeros(1, 4), rows]))
    )
    torch.testing.assert_close(
        weights[1:], ConFIGSpec().build(TASKS[:3])(torch.ones(3), Rows(rows))
    )
