"""SDMGrad between MGDA and the mean gradient, and against the simplex at random."""

import pytest
import torch

from raymtl.weighting import MGDASpec, SDMGradSpec
from tests.weighting import ABCD, Rows

pytestmark = pytest.mark.usefixtures("float64")


def test_it_lies_between_mgda_and_the_sum() -> None:
    """Without a pull it is MGDA, with a strong one the sum."""
    rows = torch.randn(4, 6)
    weights = [SDMGradSpec(pull=pull).build(ABCD)(torch.ones(4), Rows(rows)) for pull in (0.0, 1e6)]
    torch.testing.assert_close(weights[0], MGDASpec().build(ABCD)(torch.ones(4), Rows(rows)))
    torch.testing.assert_close(weights[1], torch.ones(4), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pull", [0.1, 0.3, 3.0])
def test_no_weights_of_the_simplex_are_shorter(pull: float) -> None:
    """Of the objective, which holds the mean beside them."""
    rows = torch.randn(4, 6)
    joint = SDMGradSpec(pull=pull).build(ABCD)(torch.ones(4), Rows(rows)) @ rows * (1 + pull) / 4
    others = torch.rand(5000, 4).pow(3)
    others = others / others.sum(1, keepdim=True)
    assert ((others @ rows + pull * rows.mean(0)).norm(dim=1) > joint.norm()).all()


def test_weights_sum_to_the_number_of_tasks() -> None:
    """A gradient of zero leaves the others alone."""
    rows = torch.tensor([[1.0, 0.2], [0.3, 2.0], [0.0, 0.0]])
    weights = SDMGradSpec(pull=0.5).build(ABCD[:3])(torch.ones(3), Rows(rows))
    torch.testing.assert_close(weights[:2].sum(), torch.tensor(2.0))
    torch.testing.assert_close(
        weights[:2], SDMGradSpec(pull=0.5).build(ABCD[:2])(torch.ones(2), Rows(rows[:2]))
    )
