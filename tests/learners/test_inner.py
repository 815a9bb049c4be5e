"""The inner loop against the optimisers of torch and torchopt; which parameters it moves."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchopt
from torch import Tensor, nn
from torch.func import grad

from raymtl.learners.gradient import GradientLearner
from raymtl.learners.inner import InnerOptimizer, inner_loop, inner_path, slope
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import Params, UserError, matches_last
from tests.conftest import SHARING, axes, episodes_of, experiment, perturbed
from tests.narrowing import shared_inputs

pytestmark = pytest.mark.usefixtures("float64")


def bumpy(params: Params) -> Tensor:
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
    leaves: dict[str, Tensor] = {name: nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = theirs(leaves.values())
    for _ in range(7):
        optimizer.zero_grad()
        bumpy(leaves).backward()
        optimizer.step()
    found = inner_loop(
        bumpy, start, {"a": 0.1, "b": 0.1}, 7, first_order=first_order, optimizer=ours
    )
    # Adam's 1e-8 is under the root here and beside it there.
    tolerance = 1e-6 if ours == "adam" else 1e-13
    for name, value in leaves.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_gradients_through_optimisers_equal_finite_differences(
    optimizer: InnerOptimizer,
) -> None:
    def after(a: Tensor, b: Tensor) -> Tensor:
        phi = inner_loop(bumpy, {"a": a, "b": b}, {"a": 0.1, "b": 0.05}, 4, optimizer=optimizer)
        return torch.cat([phi["a"], phi["b"]])

    assert torch.autograd.gradcheck(
        after, (torch.randn(3).requires_grad_(), torch.randn(3).requires_grad_())
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("sgd", lambda net: torchopt.MetaSGD(net, lr=0.1)),
        ("momentum", lambda net: torchopt.MetaSGD(net, lr=0.1, momentum=0.9)),
        (
            "adam",
            lambda net: torchopt.MetaAdam(net, lr=0.1, betas=(0.0, 0.999), eps=0.0, eps_root=1e-8),
        ),
    ],
)
def test_the_path_is_torchopts(
    ours: InnerOptimizer, theirs: Callable[[nn.Module], torchopt.MetaOptimizer]
) -> None:
    """And so is the gradient at every place of it."""

    class Bumpy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))

        def forward(self) -> Tensor:
            return bumpy({"a": self.a, "b": self.b})

    net = Bumpy()
    start = {"a": net.a, "b": net.b}
    optimizer = theirs(net)
    path = inner_path(bumpy, start, lambda _: {"a": 0.1, "b": 0.1}, optimizer=ours)
    outer = torch.randn(3)
    for phi in (next(path) for _ in range(6)):
        found, expected = ((at["a"] * at["b"]) @ outer for at in (phi, {"a": net.a, "b": net.b}))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        grads = [
            torch.autograd.grad(value, list(start.values()), retain_graph=True)
            for value in (found, expected)
        ]
        for ours_, theirs_ in zip(*grads, strict=True):
            torch.testing.assert_close(ours_, theirs_, rtol=1e-10, atol=1e-12)
        optimizer.step(net())


def test_a_slope_holds_the_other_parameters_fixed() -> None:
    """Even where one of them was computed from another, and to second order."""
    a = torch.randn(3).requires_grad_()
    found = slope(bumpy, {"a": a, "b": a.exp()})
    expected = grad(bumpy)({"a": a, "b": a.exp()})
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    twice = [
        torch.autograd.grad(each["a"].sum() + each["b"].sum(), a) for each in (found, expected)
    ]
    torch.testing.assert_close(*twice)


@pytest.mark.parametrize("values", [{"first_order": True}, {}])
def test_slopes_that_nobody_follows_have_no_graph(values: dict[str, bool]) -> None:
    """In first order, and where no gradient is recorded."""
    start = {"a": torch.randn(3).requires_grad_(), "b": torch.randn(3).requires_grad_()}
    with torch.set_grad_enabled("first_order" in values):
        found = slope(bumpy, start, **values)
    assert not any(value.requires_grad for value in found.values())
    torch.testing.assert_close(found, grad(bumpy)(start))


def test_a_loss_of_no_parameter_has_slope_zero() -> None:
    start = {"a": torch.randn(3).requires_grad_()}
    assert not slope(lambda _: torch.ones(()), start)["a"].any()


def test_the_path_takes_each_steps_rates() -> None:
    """It begins at the start."""
    path = inner_path(lambda p: p["a"].sum(), {"a": torch.zeros(2)}, lambda step: {"a": 10.0**step})
    found = [float(next(path)["a"][0]) for _ in range(4)]
    assert found == [0.0, -1.0, -11.0, -111.0]


def test_the_last_pattern_that_a_name_matches_decides() -> None:
    names = ["encoders.0.weight", "encoders.0.bias", "heads.left.weight", "heads.left.bias"]

    def picked(*patterns: str) -> list[str]:
        return [name for name in names if matches_last(name, patterns)]

    assert picked("*") == names
    assert picked("heads.*") == names[2:]
    assert picked("*", "-heads.*") == names[:2]
    assert picked("*", "-heads.*", "*.bias") == [names[0], names[1], names[3]]
    assert picked("-*.bias") == []


@pytest.mark.parametrize("sharing", ["hard", "cross_stitch", "mmoe"])
@pytest.mark.parametrize(
    ("learner", "adapts"), [("anil", ["heads.*"]), ("boil", ["*", "-heads.*"])]
)
@pytest.mark.parametrize(
    "values", [{}, {"learner.learn_inner_lr": True}, {"learner.gradient": "checkpointed"}]
)
def test_patterns_make_maml_anil_or_boil(
    sharing: str,
    learner: str,
    adapts: list[str],
    values: dict[str, Any],
    arrays: dict[str, np.ndarray],
) -> None:
    """On the heads it is ANIL, on the body BOIL."""
    found = []
    for own in ({"learner.name": learner}, {"learner.adapts": adapts}):
        made = axes(sharing, "uncertainty", "maml").override({**own, **values})
        algorithm = made.build()
        found.append(
            meta_gradient(algorithm, perturbed(algorithm), episodes_of(made, arrays)).grads
        )
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


@pytest.mark.parametrize("learner", ["maml", "maml_pp", "meta_sgd", "imaml", "cavia", "proto_maml"])
def test_what_is_not_adapted_stays_where_it_is(learner: str, arrays: dict[str, np.ndarray]) -> None:
    adapts = ["*.bias"] if learner == "cavia" else ["encoders.0.stages.1.*"]
    made = axes("hard", "static", learner).override(
        {"learner.adapts": [*adapts, "-encoders.0.stages.0.*"]}
    )
    algorithm = made.build()
    params = perturbed(algorithm)
    support = episodes_of(made, arrays, count=1).support
    support = support._replace(
        inputs=shared_inputs(support)[0], targets={n: t[0] for n, t in support.targets.items()}
    )
    before = algorithm.adapt(params, support, 0)
    after = algorithm.adapt(params, support, 2)
    moved = {
        n for n, v in after.items() if n.startswith("model.") and not torch.equal(v, before[n])
    }
    assert isinstance(made.learner, GradientLearner)
    patterns = made.learner.adapts
    expected = {n for n in params if n.startswith("model.") and matches_last(n[6:], patterns)}
    assert moved == expected != set()


@pytest.mark.parametrize("sharing", SHARING)
def test_patterns_without_a_match_are_refused(sharing: str) -> None:
    """In every architecture."""
    made = axes(sharing, "static", "maml")
    made.override({"learner.adapts": ["heads.*"]})
    with pytest.raises(
        UserError, match=r"learner.adapts: expected .*'-heads.middle.\*' matches none .* such as "
    ):
        made.override({"learner.adapts": ["heads.*", "-heads.middle.*"]})
    with pytest.raises(UserError, match=r"learner.adapts: .*leave out all"):
        made.override({"learner.adapts": ["heads.*", "-*"]})


def test_anil_and_boil_adapt_what_they_say() -> None:
    for learner in ("anil", "boil"):
        with pytest.raises(UserError, match=r"learner\.adapts"):
            experiment(learner__name=learner).override(
                {"learner.adapts": ["encoders.*", "heads.*"]}
            )
