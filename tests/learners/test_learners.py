"""Learners against closed forms, against `higher`, and against each other; all in float64."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import higher
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.data.base import Arrays
from raymtl.encoders.base import Encoder
from raymtl.learners import MAML, MetaLearner, ProtoNet, Reptile
from raymtl.learners.classes import BELOW
from raymtl.sharing.base import SharingArchitecture
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, TaskAxis
from raymtl.step.meta_gradient import meta_gradient
from raymtl.tasks.regression import REGRESSION
from raymtl.types import Batch, Episode, Task
from raymtl.weighting import StaticSpec
from tests.conftest import LEARNERS, SHARING, axes, episodes_of, experiment, perturbed, possible
from tests.learners.laws import (
    assert_gradient_of_finite_differences,
    assert_it_survives_saving,
    assert_the_order_of_the_support_set_has_no_say,
    assert_unlabelled_examples_have_no_say,
    assert_vmap_equals_the_loop,
)
from tests.narrowing import present, shared_inputs

DIM = 5


class Weights(SharingArchitecture):
    """Predicts its parameters, whatever the input: the loss is then any function of them."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks, (DIM,))
        self.w = nn.Parameter(torch.linspace(-1, 1, DIM))

    @property
    def shared(self) -> frozenset[str]:
        return self._names("w")

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        return {name: self.w.expand(len(inputs), DIM) for name in tasks}


class Plain(nn.Module):
    """Hard sharing written down once more, as an ordinary module that `higher` can patch."""

    def __init__(self, encoder: Encoder, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList([encoder])
        self.heads = nn.ModuleDict({task.name: task.head(encoder.shapes[-1]) for task in tasks})

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.encoders[0](inputs)
        return {name: head(features) for name, head in self.heads.items()}


class Quadratic:
    """L_S = 1/2 (w-a)'A(w-a) and L_Q = 1/2 (w-b)'B(w-b), with random positive definite A and B."""

    def __init__(self) -> None:
        roots = torch.randn(2, DIM, DIM)
        self.A, self.B = roots @ roots.mT / DIM + 0.5 * torch.eye(DIM)
        self.a, self.b = torch.randn(2, DIM)
        self.task = Task(
            "w", REGRESSION, DIM, lambda _: nn.Identity(), self.loss, {}, lambda p: p[:, 0]
        )

    def loss(self, w: Tensor, is_query: Tensor) -> Tensor:
        support = 0.5 * torch.einsum("ni,ij,nj->n", w - self.a, self.A, w - self.a)
        query = 0.5 * torch.einsum("ni,ij,nj->n", w - self.b, self.B, w - self.b)
        return torch.where(is_query.bool(), query, support)

    def meta_gradient(self, learner: MetaLearner) -> tuple[Tensor, Tensor]:
        """The start, and what raymtl computes there."""
        model = Weights([self.task])
        algorithm = Algorithm((self.task,), model, StaticSpec().build([self.task]), learner)
        params = algorithm.init_params()

        def batch(is_query: float) -> Batch:
            return Batch(torch.zeros(1, 1, 1), {"w": torch.full((1, 1), is_query)}, {})

        return model.w.detach(), meta_gradient(
            algorithm, params, Episode(batch(0.0), batch(1.0))
        ).grads["model.w"]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("steps", [0, 1, 3, 10])
def test_maml_equals_the_closed_form_on_a_quadratic(steps: int) -> None:
    quadratic, alpha = Quadratic(), 0.07
    start, computed = quadratic.meta_gradient(MAML(inner_lr=alpha, inner_steps=steps))
    contraction = torch.linalg.matrix_power(torch.eye(DIM) - alpha * quadratic.A, steps)
    adapted = quadratic.a + contraction @ (start - quadratic.a)
    expected = contraction @ quadratic.B @ (adapted - quadratic.b)
    assert torch.linalg.norm(computed - expected) < 1e-12 * torch.linalg.norm(expected)


@pytest.mark.usefixtures("float64")
def test_fomaml_leaves_the_jacobian_out() -> None:
    quadratic, alpha, steps = Quadratic(), 0.07, 3
    start, computed = quadratic.meta_gradient(
        MAML(inner_lr=alpha, inner_steps=steps, first_order=True)
    )
    contraction = torch.linalg.matrix_power(torch.eye(DIM) - alpha * quadratic.A, steps)
    adapted = quadratic.a + contraction @ (start - quadratic.a)
    torch.testing.assert_close(
        computed, quadratic.B @ (adapted - quadratic.b), rtol=1e-12, atol=1e-12
    )


@pytest.mark.usefixtures("float64")
def test_one_step_reptile_follows_the_support_gradient() -> None:
    """Times `inner_lr`."""
    quadratic = Quadratic()
    start, computed = quadratic.meta_gradient(Reptile(inner_lr=0.03, inner_steps=1))
    torch.testing.assert_close(
        computed, 0.03 * quadratic.A @ (start - quadratic.a), rtol=1e-12, atol=1e-14
    )


@pytest.mark.usefixtures("float64")
def test_reptiles_first_adam_step_is_inner_lr() -> None:
    """In every coordinate."""
    quadratic = Quadratic()
    start, computed = quadratic.meta_gradient(
        Reptile(inner_lr=0.03, inner_steps=1, inner_optimizer="adam")
    )
    torch.testing.assert_close(
        computed, 0.03 * (quadratic.A @ (start - quadratic.a)).sign(), rtol=1e-6, atol=1e-8
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "encoder",
    [
        {"encoder__name": "mlp", "encoder__hidden": [6, 5]},
        {"encoder__name": "conv", "encoder__channels": [4, 8]},
        {"encoder__name": "conv", "encoder__channels": [4], "encoder__norm": "none"},
    ],
)
@pytest.mark.parametrize("axis", ["vmap", "loop"])
def test_maml_equals_higher_on_every_encoder(
    encoder: dict[str, Any], axis: TaskAxis, arrays: Arrays
) -> None:
    chosen = experiment(
        learner__inner_steps=3, learner__inner_lr=0.02, data__tasks=["left", "sum"], **encoder
    )
    algorithm = chosen.build()
    params = perturbed(algorithm)
    episodes = episodes_of(chosen, arrays)
    computed = meta_gradient(algorithm, params, episodes, execution=ExecutionConfig(axis))

    model = Plain(chosen.encoder.build(chosen.data.input_shape), algorithm.tasks)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(params[f"model.{name}"])

    def total(predictions: Mapping[str, Tensor], batch: Batch, index: int) -> Tensor:
        targets = {name: target[index] for name, target in batch.targets.items()}
        standardised = (targets["sum"] - 9) / 16.5**0.5
        return F.cross_entropy(predictions["left"], targets["left"]) + F.mse_loss(
            predictions["sum"][:, 0], standardised
        )

    for index in range(chosen.train.meta_batch):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (
            functional,
            inner,
        ):
            for _ in range(3):
                inner.step(
                    total(
                        functional(shared_inputs(episodes.support)[index]), episodes.support, index
                    )
                )
            loss = total(functional(shared_inputs(episodes.query)[index]), episodes.query, index)
            (loss / chosen.train.meta_batch).backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(
            computed.grads[f"model.{name}"], value.grad, rtol=1e-10, atol=1e-11
        )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("learner", LEARNERS)
def test_unlabelled_examples_change_nothing(learner: str, arrays: dict[str, np.ndarray]) -> None:
    assert_unlabelled_examples_have_no_say(axes("cross_stitch", "static", learner), arrays)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("learner", LEARNERS)
def test_the_order_of_the_support_changes_nothing(
    learner: str, arrays: dict[str, np.ndarray]
) -> None:
    assert_the_order_of_the_support_set_has_no_say(axes("cross_stitch", "static", learner), arrays)


APPROXIMATE = ("imaml", "reptile", "warp_grad")
"""Follow another direction than the gradient of the query loss, by their definition."""
WHOLE: dict[str, dict[str, object]] = {
    "maml": {"learner.learn_inner_lr": True},
    "anil": {"learner.learn_inner_lr": True},
    "boil": {"learner.learn_inner_lr": True},
    "maml_pp": {"learner.first_order_until": 0},
    "umtl": {"learner.reconstruction": 0},
}
"""Values with which all parameters have a part in the query loss, and in nothing else."""


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("learner", [name for name in LEARNERS if name not in APPROXIMATE])
def test_the_meta_gradient_equals_finite_differences(
    learner: str, arrays: dict[str, np.ndarray]
) -> None:
    chosen = axes("hard", "static", learner).override(WHOLE.get(learner, {}))
    assert_gradient_of_finite_differences(chosen, arrays, scale=0.02)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sharing", SHARING)
def test_prototypes_are_class_means(sharing: str, arrays: Arrays) -> None:
    """Absent classes are the least likely."""
    chosen = axes(sharing, "static", "protonet")
    algorithm = chosen.build()
    params = algorithm.init_params()
    episodes = episodes_of(chosen, arrays, count=1)
    support = Batch(
        shared_inputs(episodes.support)[0],
        {name: target[0] for name, target in episodes.support.targets.items()},
        {"left": episodes.support.targets["left"][0] != 3},
    )
    adapted = algorithm.adapt(params, support)
    logits = algorithm.predict(adapted, shared_inputs(episodes.query)[0])["left"]
    features = algorithm.model(support.inputs, output="features")["left"].detach()
    queries = algorithm.model(shared_inputs(episodes.query)[0], output="features")["left"].detach()
    mean = features[support.targets["left"] == 5].mean(0)
    torch.testing.assert_close(logits[:, 5], -(queries - mean).square().sum(1))
    shown = torch.cat([logits[:, :3], logits[:, 4:]], dim=1)
    torch.testing.assert_close(logits[:, 3], shown.amin(1) - BELOW)


def test_protonet_says_which_task_it_cannot_learn() -> None:
    reason = present(ProtoNet().check(experiment(data__tasks=["left", "sum"]).data.make_tasks()))
    assert "'sum' is a regression" in reason


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in LEARNERS),
    ("matching", {"learner.full_context": True}),
    ("metaopt", {"learner.head": "ridge"}),
    ("anil", {"learner.learn_inner_lr": True}),
    ("maml", {"learner.inner_optimizer": "momentum"}),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("sharing", "weighting"), [("hard", "static"), ("cross_stitch", "pcgrad")])
@pytest.mark.parametrize(("learner", "values"), VARIANTS)
def test_vmap_equals_the_loop_with_labels_missing(
    learner: str, values: dict[str, Any], sharing: str, weighting: str, arrays: Arrays
) -> None:
    if possible(sharing, weighting, learner):
        assert_vmap_equals_the_loop(axes(sharing, weighting, learner).override(values), arrays)
    else:
        assert (weighting, learner) == ("pcgrad", "reptile")


@pytest.mark.parametrize(("learner", "values"), VARIANTS)
def test_an_adapted_model_survives_saving(
    learner: str, values: dict[str, Any], arrays: Arrays, tmp_path: Path
) -> None:
    assert_it_survives_saving(axes("hard", "static", learner).override(values), arrays, tmp_path)
