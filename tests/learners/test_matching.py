"""Matching networks against naive loops, torch's own LSTMs and finite differences."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.config import Experiment
from raymtl.learners import Matching
from raymtl.learners.classes import BELOW
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import meta_gradient
from raymtl.tasks.classification import CLASSIFICATION
from raymtl.types import Batch, Task
from tests.conftest import axes, episodes_of, experiment, perturbed
from tests.learners.laws import (
    assert_gradient_of_finite_differences,
    assert_unlabelled_examples_have_no_say,
    first,
)
from tests.narrowing import present, shared_inputs

pytestmark = pytest.mark.usefixtures("float64")

CONTEXT = pytest.mark.parametrize("full_context", [False, True])


def matching(sharing: str = "hard", weighting: str = "static", **values: Any) -> Experiment:
    own = {f"learner.{key}": value for key, value in values.items()}
    return axes(sharing, weighting, "matching").override(own)


def features(algorithm: Algorithm, params: dict[str, Tensor], inputs: Tensor, name: str) -> Tensor:
    own = {n.removeprefix("model."): v for n, v in params.items() if n.startswith("model.")}
    every: dict[str, Tensor] = torch.func.functional_call(
        algorithm.model, own, (inputs,), {"output": "features"}
    )
    return every[name]


@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("sharing", ["hard", "cross_stitch"])
def test_probability_is_attention_on_the_class(
    sharing: str, scale: float, arrays: dict[str, np.ndarray]
) -> None:
    chosen = matching(sharing, scale=scale)
    algorithm = chosen.build()
    params = perturbed(algorithm)
    support, query = first(episodes_of(chosen, arrays))
    predictions = algorithm.predict(algorithm.adapt(params, support), query.inputs)
    for name, logits in predictions.items():
        known = features(algorithm, params, shared_inputs(support), name)
        for asked, found in zip(
            features(algorithm, params, shared_inputs(query), name), logits, strict=True
        ):
            strength = [
                (scale * torch.dot(asked, k) / (asked.norm() * k.norm())).item() for k in known
            ]
            attention = torch.tensor(strength).softmax(0)
            expected = torch.zeros(10)
            for weight, label in zip(attention, support.targets[name], strict=True):
                expected[label] += weight
            torch.testing.assert_close(found.detach().exp(), expected, rtol=1e-10, atol=1e-12)


@CONTEXT
def test_the_output_is_in_the_simplex(full_context: bool, arrays: dict[str, np.ndarray]) -> None:
    """Also where a class is not shown, and where none is."""
    chosen = matching(full_context=full_context)
    algorithm = chosen.build()
    support, query = first(episodes_of(chosen, arrays))
    nothing = torch.zeros(len(support.inputs), dtype=torch.bool)
    support = support._replace(masks={"left": support.targets["left"] != 3, "right": nothing})
    predictions = algorithm.predict(algorithm.adapt(perturbed(algorithm), support), query.inputs)
    for logits in predictions.values():
        probabilities = logits.exp()
        assert (probabilities >= 0).all()
        torch.testing.assert_close(
            probabilities.sum(-1), torch.ones(len(logits)), rtol=0, atol=1e-12
        )
    shown = torch.cat([predictions["left"][:, :3], predictions["left"][:, 4:]], dim=1)
    torch.testing.assert_close(predictions["left"][:, 3], shown.amin(1) - BELOW)
    torch.testing.assert_close(predictions["right"].exp(), torch.full((len(query.inputs), 10), 0.1))


@pytest.mark.parametrize("full_context", [False, True])
def test_the_support_order_matters_in_full_context_alone(
    full_context: bool, arrays: dict[str, np.ndarray]
) -> None:
    chosen = matching("cross_stitch", full_context=full_context)
    algorithm = chosen.build()
    params = perturbed(algorithm, scale=0.3)
    support, query = first(episodes_of(chosen, arrays))
    order = torch.randperm(len(support.inputs))
    other = Batch(
        shared_inputs(support)[order], {n: t[order] for n, t in support.targets.items()}, {}
    )
    one, two = (
        algorithm.predict(algorithm.adapt(params, s), query.inputs)["left"]
        for s in (support, other)
    )
    if full_context:
        assert (one - two).abs().max() > 1e-4
    else:
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_full_context_starts_as_the_plain_network(arrays: dict[str, np.ndarray]) -> None:
    found = []
    for full_context in (False, True):
        chosen = matching(full_context=full_context)
        algorithm = chosen.build()
        support, query = first(episodes_of(chosen, arrays))
        params = {**algorithm.init_params()}
        assert any(name.startswith("learner.") for name in params) == full_context
        found.append(algorithm.predict(algorithm.adapt(params, support), query.inputs)["left"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_full_context_is_what_torchs_lstms_compute(arrays: dict[str, np.ndarray]) -> None:
    chosen = matching(full_context=True, reads=3)
    algorithm = chosen.build()
    params = perturbed(algorithm, scale=0.3)
    support, query = first(episodes_of(chosen, arrays))
    predicted = algorithm.predict(algorithm.adapt(params, support), query.inputs)["right"]
    known, asked = (
        features(algorithm, params, shared_inputs(batch), "right") for batch in (support, query)
    )
    width = known.shape[1]
    both = nn.LSTM(width, width, bidirectional=True)
    read = nn.LSTMCell(width, 2 * width)

    def copy(module: nn.Module, suffix: str, cell: str) -> None:
        for theirs, ours in (("weight_ih", "input"), ("weight_hh", "hidden"), ("bias_ih", "bias")):
            getattr(module, theirs + suffix).data = params[f"learner.{cell}.right.{ours}"].detach()
        getattr(module, "bias_hh" + suffix).data.zero_()

    copy(both, "_l0", "forward")
    copy(both, "_l0_reverse", "backward")
    known = known + sum(both(known)[0].chunk(2, -1))
    # torch's cell remembers as much as it puts out; the read is not put out: it is set before every step.
    for theirs, ours in (("weight_ih", "input"), ("bias_ih", "bias")):
        getattr(read, theirs).data = torch.zeros_like(getattr(read, theirs))
        mine = params[f"learner.read.right.{ours}"].detach()
        for gate in range(4):
            getattr(read, theirs).data[2 * width * gate : 2 * width * gate + width] = mine[
                width * gate : width * (gate + 1)
            ]
    read.weight_hh.data, read.bias_hh.data = (
        torch.zeros(8 * width, 2 * width),
        torch.zeros(8 * width),
    )
    for gate in range(4):
        mine = params["learner.read.right.hidden"].detach()[width * gate : width * (gate + 1)]
        read.weight_hh.data[2 * width * gate : 2 * width * gate + width] = mine
    hidden, memory = torch.zeros_like(asked), torch.zeros(len(asked), 2 * width)
    for _ in range(3):
        seen = (hidden @ known.T).softmax(-1) @ known
        output, memory = read(asked, (torch.cat([hidden, seen], -1), memory))
        hidden = output[:, :width] + asked
    attention = (10.0 * F.cosine_similarity(hidden[:, None], known[None], dim=-1)).softmax(-1)
    expected = attention @ F.one_hot(support.targets["right"], 10).double()
    torch.testing.assert_close(predicted.exp(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("own", ["forward", "backward", "read", ""])
def test_the_meta_gradient_equals_finite_differences(
    own: str, arrays: dict[str, np.ndarray]
) -> None:
    chosen = matching(full_context=True, reads=2)
    prefix = f"learner.{own}." if own else ""
    assert_gradient_of_finite_differences(chosen, arrays, prefix, scale=0.3)


@CONTEXT
def test_unlabelled_examples_have_no_say(full_context: bool, arrays: dict[str, np.ndarray]) -> None:
    assert_unlabelled_examples_have_no_say(
        matching("cross_stitch", full_context=full_context), arrays
    )


def test_it_says_which_task_it_cannot_learn() -> None:
    reason = Matching().check(experiment(data__tasks=["left", "sum"]).data.make_tasks())
    assert reason == "a match gives a class, and task 'sum' is a regression"
    odd = Task("odd", CLASSIFICATION, 3, lambda shape: nn.Sequential(nn.Linear(shape[0], 3)), F.cross_entropy, {}, lambda p: p)  # fmt: skip
    assert Matching().check([odd]) is None
    assert "that of task 'odd' is a Sequential" in present(Matching(full_context=True).check([odd]))


def test_full_context_runs_in_bfloat16(arrays: dict[str, np.ndarray]) -> None:
    """The plain network does in tests/step/test_meta_gradient.py; the LSTMs stay in the precision of the parameters."""
    torch.set_default_dtype(torch.float32)
    chosen = matching(full_context=True)
    algorithm = chosen.build()
    params, episodes = perturbed(algorithm), episodes_of(chosen, arrays)
    half, whole = (
        meta_gradient(algorithm, params, episodes, execution=ExecutionConfig(precision=p))
        for p in ("bfloat16", "float32")
    )
    torch.testing.assert_close(half.losses, whole.losses, rtol=0.05, atol=0.05)
    assert not torch.equal(half.losses, whole.losses)
    assert all(
        gradient.dtype == torch.float32 and gradient.isfinite().all()
        for gradient in half.grads.values()
    )
