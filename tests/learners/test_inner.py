"""The inner loop against the optimisers of torch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from raymtl.learners.inner import InnerOptimizer, inner_loop, inner_path

pytestmark = pytest.mark.usefixtures("float64")


def bumpy(params: dict[str, Tensor]) -> Tensor:
    return (params["a"].sin() * params["b"]).sum() + params["b"].pow(4).sum()


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1)),
        ("momentum", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.999), eps=1e-8)),
    ],
)
def test_its_optimisers_go_where_those_of_torch_go(
    ours: InnerOptimizer, theirs: Callable[..., torch.optim.Optimizer], first_order: bool
) -> None:
    start = {"a": torch.randn(3), "b": torch.randn(3)}
    leaves = {name: nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = theirs(leaves.values())
    for _ in range(7):
        optimizer.zero_grad()
        bumpy(leaves).backward()
        optimizer.step()
    found = inner_loop(bumpy, start, {"a": 0.1, "b": 0.1}, 7, first_order=first_order, optimizer=ours)
    # Adam's 1e-8 is under the root here and beside it there.
    tolerance = 1e-6 if ours == "adam" else 1e-13
    for name, value in leaves.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_the_gradient_through_every_optimiser_is_that_of_finite_differences(optimizer: InnerOptimizer) -> None:
    def after(a: Tensor, b: Tensor) -> Tensor:
        phi = inner_loop(bumpy, {"a": a, "b": b}, {"a": 0.1, "b": 0.05}, 4, optimizer=optimizer)
        return torch.cat([phi["a"], phi["b"]])

    assert torch.autograd.gradcheck(after, (torch.randn(3).requires_grad_(), torch.randn(3).requires_grad_()))


def test_the_path_begins_at_the_start_and_takes_the_rates_of_each_step() -> None:
    path = inner_path(lambda p: p["a"].sum(), {"a": torch.zeros(2)}, lambda step: {"a": 10.0**step})
    found = [float(next(path)["a"][0]) for _ in range(4)]
    assert found == [0.0, -1.0, -11.0, -111.0]
