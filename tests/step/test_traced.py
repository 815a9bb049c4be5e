"""A traced graph gives the numbers of the function that it stands for."""

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from raymtl.step import traced
from raymtl.step.traced import Tracer
from raymtl.types import Batch, Episode, MetaBatch, Params
from tests.narrowing import one_stack, shared_inputs


def episode(count: int = 3, seed: int = 0) -> Episode:
    """A stack of `count` episodes of 4 examples with 2 numbers each."""
    generator = torch.Generator().manual_seed(seed)

    def batch() -> Batch:
        inputs = torch.randn(count, 4, 2, generator=generator)
        targets = torch.randn(count, 4, generator=generator)
        return Batch(inputs, {"t": targets}, {"t": torch.ones(count, 4)})

    return Episode(batch(), batch())


def params(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {"w": torch.randn(2).requires_grad_(), "unused": torch.randn(3).requires_grad_()}


def losses(params: Params, episodes: MetaBatch) -> tuple[Tensor, ...]:
    """One inner step, then two losses."""
    stack = one_stack(episodes)

    def support(w: Tensor) -> Tensor:
        return (shared_inputs(stack.support) @ w - stack.support.targets["t"]).pow(2).mean()

    adapted = params["w"] - 0.1 * torch.func.grad(support)(params["w"])
    error = shared_inputs(stack.query) @ adapted - stack.query.targets["t"]
    return error.pow(2).sum(), error.abs().sum()


def gradient(outputs: tuple[Tensor, ...], given: dict[str, Tensor]) -> Tensor:
    first, second = outputs
    return torch.autograd.grad(2 * first + 3 * second, given["w"], retain_graph=True)[0]


@pytest.mark.usefixtures("float64")
def test_a_replay_is_exact_on_fresh_arguments() -> None:
    tracer = Tracer("replay")
    for seed in range(3):
        given, stack = params(seed), episode(seed=seed)
        replayed = tracer.run(losses, "losses", given, stack)
        plain = losses(given, stack)
        assert torch.equal(torch.stack(replayed), torch.stack(plain))
        assert torch.equal(gradient(replayed, given), gradient(plain, given))
    assert tracer.refusal is None


def test_one_graph_serves_all_of_a_shape() -> None:
    seen: list[int] = []

    def counted(params: Params, episodes: MetaBatch) -> tuple[Tensor, ...]:
        seen.append(len(one_stack(episodes).query.targets["t"]))
        return losses(params, episodes)

    tracer = Tracer("replay")
    for seed in range(3):
        tracer.run(counted, "losses", params(seed), episode(seed=seed))
    traced_and_checked = len(seen)
    tracer.run(counted, "losses", params(), episode())
    assert len(seen) == traced_and_checked
    tracer.run(counted, "losses", params(), episode(count=5))
    assert len(seen) > traced_and_checked
    assert tracer.refusal is None


def test_a_rare_shape_is_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "PATIENCE", 2)
    tracer = Tracer("replay")
    graphs = []
    for count in (3, 5, 5, 5, 5, 3):
        tracer.run(losses, "losses", params(), episode(count))
        graphs.append(len(tracer._traced))
    assert graphs == [1, 1, 1, 2, 2, 2]


def test_a_branch_on_values_runs_without_a_graph(caplog: pytest.LogCaptureFixture) -> None:
    def branching(params: Params, episodes: MetaBatch) -> tuple[Tensor, ...]:
        if float(params["w"].sum()) > 0:
            return losses(params, episodes)
        return tuple(-loss for loss in losses(params, episodes))

    tracer = Tracer("replay")
    with caplog.at_level(logging.WARNING, "raymtl"):
        for seed in range(3):
            given, stack = params(seed), episode(seed=seed)
            replayed = tracer.run(branching, "losses", given, stack)
            assert torch.equal(torch.stack(replayed), torch.stack(branching(given, stack)))
    assert tracer.refusal
    assert len(caplog.records) == 1
    assert "train.graph" in caplog.text


def test_a_function_with_memory_runs_without_a_graph() -> None:
    def numbers() -> Iterator[float]:
        number = 1.0
        while True:
            yield number
            number += 1

    count = numbers()

    def growing(params: Params, episodes: MetaBatch) -> tuple[Tensor, ...]:
        return (losses(params, episodes)[0] * next(count),)

    tracer = Tracer("replay")
    tracer.run(growing, "losses", params(), episode())
    assert tracer.refusal == "its losses or gradients differ from those without a graph"


def test_a_key_tells_functions_apart() -> None:
    def doubled(params: Params, episodes: MetaBatch) -> tuple[Tensor, ...]:
        return tuple(2 * loss for loss in losses(params, episodes))

    tracer = Tracer("replay")
    given, stack = params(), episode()
    once = tracer.run(losses, "losses", given, stack)
    twice = tracer.run(doubled, "doubled", given, stack)
    assert torch.allclose(torch.stack(twice), 2 * torch.stack(once))


@pytest.mark.slow
def test_a_compiled_graph_agrees_up_to_rounding() -> None:
    tracer = Tracer("compile")
    for seed in range(3):
        given, stack = params(seed), episode(seed=seed)
        replayed = tracer.run(losses, "losses", given, stack)
        plain = losses(given, stack)
        torch.testing.assert_close(torch.stack(replayed), torch.stack(plain))
        torch.testing.assert_close(gradient(replayed, given), gradient(plain, given))
    assert tracer.refusal is None
