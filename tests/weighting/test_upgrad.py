"""UPGrad against projections by enumeration of the cone's faces."""

import pytest
import torch

from raymtl.weighting import PCGradSpec, UPGradSpec
from tests.weighting import ABCD, Rows
from tests.weighting.cone import projected

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("seed", range(10))
def test_it_is_the_sum_of_the_projected_gradients(seed: int) -> None:
    """Also with fewer coordinates than tasks."""
    rows = torch.randn(4, 2 + seed % 5, generator=torch.Generator().manual_seed(seed))
    joint = UPGradSpec().build(ABCD)(torch.ones(4), Rows(rows)) @ rows
    torch.testing.assert_close(
        joint, torch.stack([projected(row, rows) for row in rows]).sum(0), rtol=1e-8, atol=1e-8
    )


def test_two_tasks_are_those_of_pcgrad() -> None:
    for _ in range(10):
        rows = torch.randn(2, 4)
        expected = PCGradSpec().build(ABCD[:2])(torch.ones(2), Rows(rows))
        torch.testing.assert_close(
            UPGradSpec().build(ABCD[:2])(torch.ones(2), Rows(rows)), expected
        )


def test_without_conflict_and_beside_zeros_all_weigh_1() -> None:
    rows = torch.tensor([[1.0, 0.2], [0.3, 2.0], [0.0, 0.0], [1.0, 1.0]])
    assert UPGradSpec().build(ABCD)(torch.ones(4), Rows(rows)).tolist() == [1] * 4
