"""Conditional neural processes: against their formula, written down once more, and on sinusoids."""

import numpy as np
import pytest
import torch
from torch import Tensor

from raymtl.learners import CNP, Hyper, MetaLearner
from raymtl.learners.classes import BELOW
from raymtl.tasks import multilabel, regression
from tests.conftest import axes, episodes_of, experiment, perturbed
from tests.learners.laws import (
    first,
    mse_on_sinusoids,
)
from tests.narrowing import present


def two_layers(params: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weights = [
        params[f"learner.{name}.{i}.{kind}"] for i in range(2) for kind in ("weight", "bias")
    ]
    return (x @ weights[0].T + weights[1]).relu() @ weights[2].T + weights[3]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sharing", ["hard", "cross_stitch"])
def test_it_decodes_queries_beside_means(sharing: str, arrays: dict[str, np.ndarray]) -> None:
    """All of them for a regression; for a classification those of each class, of which the fourth is hidden."""
    chosen = experiment(
        sharing__name=sharing, data__tasks=["left", "sum"], learner__name="cnp", data__shots=2
    )
    algorithm = chosen.build()
    params = perturbed(algorithm)
    support, query = first(episodes_of(chosen, arrays))
    shown = support.targets["left"] != 3
    support = support._replace(masks={"left": shown})
    predicted = algorithm.predict(algorithm.adapt(params, support), query.inputs)
    named = {n.removeprefix("model."): v for n, v in params.items() if n.startswith("model.")}
    of_support, of_query = (
        torch.func.functional_call(algorithm.model, named, (inputs,), {"output": "features"})
        for inputs in (support.inputs, query.inputs)
    )
    y = (support.targets["sum"] - 9) / 16.5**0.5
    r = two_layers(params, "encoder.sum", torch.cat([of_support["sum"], y[:, None]], 1)).mean(0)
    rows = torch.cat([of_query["sum"], r.expand(len(query.inputs), -1)], 1)
    torch.testing.assert_close(predicted["sum"], two_layers(params, "decoder.sum", rows))
    read = two_layers(params, "encoder.left", of_support["left"])
    means = [
        read[support.targets["left"] == c].mean(0) if c != 3 else torch.zeros_like(r)
        for c in range(10)
    ]
    rows = torch.cat([of_query["left"], torch.cat(means).expand(len(query.inputs), -1)], 1)
    expected = two_layers(params, "decoder.left", rows)
    kept = [c for c in range(10) if c != 3]
    torch.testing.assert_close(predicted["left"][:, kept], expected[:, kept])
    torch.testing.assert_close(predicted["left"][:, 3], expected[:, kept].amin(1) - BELOW)


@pytest.mark.usefixtures("float64")
def test_without_any_label_it_predicts_numbers(arrays: dict[str, np.ndarray]) -> None:
    chosen = axes("hard", "static", "cnp")
    algorithm = chosen.build()
    support, query = first(episodes_of(chosen, arrays))
    hidden = {
        name: torch.zeros_like(target, dtype=torch.bool) for name, target in support.targets.items()
    }
    predicted = algorithm.predict(
        algorithm.adapt(perturbed(algorithm), support._replace(masks=hidden)), query.inputs
    )
    assert all(value.isfinite().all() for value in predicted.values())


def test_it_says_what_it_cannot_read() -> None:
    task = regression("y", 0.0, 1.0)
    assert CNP().check([task]) is None
    assert "'y' have no encoding" in present(CNP().check([task._replace(encode_target=None)]))
    vector = present(CNP().check([task._replace(out_features=3)]))
    assert "'y' is a regression with an output of 3" in vector


@pytest.mark.parametrize("learner", [CNP(), Hyper()], ids=["cnp", "hyper"])
@pytest.mark.parametrize("num_labels", [1, 2, 5])
def test_sets_of_labels_are_refused(learner: MetaLearner, num_labels: int) -> None:
    """An example belongs to one group of the support set; one with several labels would to many."""
    reason = present(learner.check([multilabel("tags", num_labels)]))
    assert f"'tags' is a multilabel with an output of {num_labels}" in reason


@pytest.mark.slow
def test_it_learns_the_sinusoids() -> None:
    assert mse_on_sinusoids("cnp", 400) < 1.0
