"""The hypernetwork: where it starts from, what it does to a layer, and on sinusoids."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from raymtl.learners.sets import perceptron, read
from raymtl.types import select
from tests.conftest import SHARING, axes, episodes_of, experiment, perturbed, with_missing_labels
from tests.learners.laws import (
    first,
    mse_on_sinusoids,
)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sharing", SHARING)
def test_it_starts_as_protonet_or_the_model(sharing: str, arrays: dict[str, np.ndarray]) -> None:
    """Up to |f|^2, which is the same for all classes, the absent ones included."""
    chosen = axes(sharing, "static", "protonet").override({"learner.name": "hyper"})
    episode = first(with_missing_labels(episodes_of(chosen, arrays), share=0.5))
    predicted = []
    for name in ("hyper", "protonet"):
        algorithm = chosen.override({"learner.name": name}).build()
        predicted.append(
            algorithm.predict(
                algorithm.adapt(algorithm.init_params(), episode.support), episode.query.inputs
            )
        )
    for task, logits in predicted[1].items():
        difference = predicted[0][task] - logits
        torch.testing.assert_close(
            difference, difference[:, :1].expand_as(difference), rtol=0, atol=1e-9
        )
        assert not torch.equal(predicted[0][task], logits)


@pytest.mark.usefixtures("float64")
def test_a_regression_starts_as_the_models_own(arrays: dict[str, np.ndarray]) -> None:
    chosen = experiment(learner__name="hyper", data__tasks=["sum"])
    algorithm = chosen.build()
    params = algorithm.init_params()
    support, query = first(episodes_of(chosen, arrays))
    expected = algorithm.model(query.inputs)["sum"]
    torch.testing.assert_close(
        algorithm.predict(algorithm.adapt(params, support), query.inputs)["sum"], expected
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "encoder",
    [
        {"encoder__name": "mlp", "encoder__hidden": [6, 5]},
        {"encoder__name": "conv", "encoder__channels": [4, 8]},
        {"encoder__name": "conv", "encoder__channels": [4, 8], "encoder__norm": "none"},
    ],
)
def test_it_modulates_layers_and_norms(
    encoder: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    """By hooks on the modules of the unchanged model, whose head is the one that was emitted."""
    chosen = experiment(learner__name="hyper", data__tasks=["left", "sum"], **encoder)
    algorithm = chosen.build()
    params = perturbed(algorithm)
    support, query = first(episodes_of(chosen, arrays))
    adapted = algorithm.adapt(params, support)
    own = select(params, "learner")
    codes = [
        perceptron(own, f"encoder.{name}", rows).mean(0)
        for name, (rows, _) in read(algorithm.model, params, support).items()
    ]
    emitted = perceptron(own, "code", (codes[0] + codes[1]) / 2).relu()

    def modulated(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            scale, shift = (own[f"{kind}.{name}.bias"] @ emitted for kind in ("scale", "shift"))
            by_unit = (-1,) + (1,) * (output.ndim - 2)
            if isinstance(module, nn.GroupNorm):  # the scale of its normalised inputs has its own
                bias = params[f"model.{name}.bias"]
                weight = params[f"model.{name}.weight"]
                normalised = (output - bias.view(by_unit)) / weight.view(by_unit)
                of_weight, to_weight = (
                    own[f"{kind}.{name}.weight"] @ emitted for kind in ("scale", "shift")
                )
                weight = (1 + of_weight) * weight + to_weight
                return normalised * weight.view(by_unit) + ((1 + scale) * bias + shift).view(
                    by_unit
                )
            return output * (1 + scale).view(by_unit) + shift.view(by_unit)

        return hook

    for name, module in algorithm.model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.GroupNorm) and not name.startswith(
            "heads."
        ):
            module.register_forward_hook(modulated(name))
    heads = {n: v for n, v in adapted.items() if n.startswith("model.heads.")}
    expected = functional_call(
        algorithm.model, select({**params, **heads}, "model"), (query.inputs,)
    )
    for handle in algorithm.model.modules():
        handle._forward_hooks.clear()
    for task, prediction in algorithm.predict(adapted, query.inputs).items():
        torch.testing.assert_close(prediction, expected[task], rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_a_task_without_labels_does_not_count(arrays: dict[str, np.ndarray]) -> None:
    """What the other says of the episode is then all that is emitted from."""
    chosen = experiment(learner__name="hyper", data__tasks=["left", "sum"])
    algorithm = chosen.build()
    params = perturbed(algorithm)
    support, query = first(episodes_of(chosen, arrays))
    own = select(params, "learner")
    rows, _ = read(algorithm.model, params, support)["sum"]
    emitted = perceptron(own, "code", perceptron(own, "encoder.sum", rows).mean(0)).relu()
    hidden = {"left": torch.zeros_like(support.targets["left"], dtype=torch.bool)}
    adapted = algorithm.adapt(params, support._replace(masks=hidden))
    name = "encoders.0.stages.0.1.bias"
    expected = (1 + own[f"scale.{name}"] @ emitted) * params[f"model.{name}"] + own[
        f"shift.{name}"
    ] @ emitted
    torch.testing.assert_close(adapted[f"model.{name}"], expected)
    hidden["sum"] = hidden["left"]
    nothing = algorithm.adapt(params, support._replace(masks=hidden))
    assert all(
        value.isfinite().all() for value in algorithm.predict(nothing, query.inputs).values()
    )


@pytest.mark.slow
def test_it_learns_the_sinusoids() -> None:
    assert mse_on_sinusoids("hyper", 400) < 1.0
