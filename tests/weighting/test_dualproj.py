"""DualProj against the projection by enumeration of the cone's faces."""

import pytest
import torch

from raymtl.weighting import DualProjSpec
from tests.weighting import ABCD, Rows
from tests.weighting.cone import projected

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("seed", range(10))
def test_it_is_the_projected_sum(seed: int) -> None:
    """Also with fewer coordinates than tasks."""
    rows = torch.randn(4, 2 + seed % 5, generator=torch.Generator().manual_seed(seed))
    joint = DualProjSpec().build(ABCD)(torch.ones(4), Rows(rows)) @ rows
    torch.testing.assert_close(joint, projected(rows.sum(0), rows), rtol=1e-8, atol=1e-8)


def test_a_sum_without_conflict_stays() -> None:
    """Though gradients conflict with each other."""
    rows = torch.tensor([[2.0, 1.0], [-1.0, 1.5], [0.0, 0.0]])
    assert rows[0] @ rows[1] < 0
    assert DualProjSpec().build(ABCD[:3])(torch.ones(3), Rows(rows)).tolist() == [1] * 3
