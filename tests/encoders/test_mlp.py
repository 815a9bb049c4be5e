"""A perceptron without hidden layers: each task is a linear model of the input."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from raymtl.config import Experiment
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import UserError
from tests.conftest import SHARING, episodes_of, experiment

LINEAR = {"encoder.name": "mlp", "encoder.hidden": []}
WITHOUT_STAGES = {
    "adversarial",
    "attention",
    "cgc",
    "dselect_k",
    "hard",
    "mmoe",
    "relation",
    "soft",
}
"""Architectures that do nothing between the layers of an encoder, and nothing with their weights."""


def linear(sharing: str) -> Experiment:
    return experiment().override(
        {**LINEAR, "sharing.name": sharing, "data.tasks": ["left", "right"]}
    )


def test_a_task_is_a_linear_map_of_the_input() -> None:
    algorithm = linear("hard").build()
    pictures = torch.rand(3, *linear("hard").data.input_shape)
    head = algorithm.model.heads["left"]
    predicted = algorithm.predict(algorithm.init_params(), pictures)["left"]
    torch.testing.assert_close(predicted, head(pictures.flatten(1)))
    assert all(name.startswith("heads.") for name, _ in algorithm.model.named_parameters())


@pytest.mark.parametrize("name", SHARING)
def test_architectures_learn_linear_models_or_say_why_not(
    name: str, arrays: Mapping[str, np.ndarray]
) -> None:
    if name not in WITHOUT_STAGES:
        with pytest.raises(UserError, match=r"sharing.name: "):
            linear(name)
        return
    algorithm = linear(name).build()
    params = algorithm.init_params()
    meta = meta_gradient(algorithm, params, episodes_of(linear(name), arrays, step=0))
    assert any(meta.grads[name].abs().max() > 0 for name in params if "heads." in name)
    assert all(gradient.isfinite().all() for gradient in meta.grads.values())
