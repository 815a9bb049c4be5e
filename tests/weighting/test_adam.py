"""Adam as a function against torch's."""

import pytest
import torch

from raymtl.weighting.adam import adam


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_it_equals_torchs_over_20_steps(dtype: torch.dtype, tolerance: float) -> None:
    gradients = torch.randn(20, 4, dtype=dtype) * torch.tensor([1e-4, 1.0, 1e3, 0.0], dtype=dtype)
    ours, state = torch.zeros(4, dtype=dtype), torch.zeros(4, 3, dtype=dtype)
    theirs = torch.nn.Parameter(torch.zeros(4, dtype=dtype))
    optimizer = torch.optim.Adam([theirs], lr=0.025)
    for gradient in gradients:
        direction, state = adam(gradient, state)
        ours = ours - 0.025 * direction
        theirs.grad = gradient
        optimizer.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=tolerance, atol=tolerance)
    assert ours[3] == 0


def test_an_idle_number_resumes_its_moments() -> None:
    """A number that stands still goes on as if there had been no step."""
    gradients = torch.randn(6, 1, dtype=torch.float64)
    alone, among = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    for step, gradient in enumerate(gradients):
        expected, alone = adam(gradient, alone)
        found, moved = adam(gradient, among[:1])
        among = torch.cat([moved, among[1:]])
        if step % 2:
            _, moved = adam(gradient, among[1:])
            among = torch.cat([among[:1], moved])
        torch.testing.assert_close(found, expected)
    assert among[:, 2].tolist() == [6, 3]
