"""Proto-MAML against protonet, against a loop written by hand, and against finite differences."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.learners import ProtoMAML
from raymtl.learners.classes import BELOW
from raymtl.step.meta_gradient import meta_gradient
from raymtl.tasks.classification import CLASSIFICATION
from raymtl.types import Task
from tests.conftest import axes, episodes_of, experiment, perturbed
from tests.learners.laws import (
    first,
)
from tests.narrowing import present

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("sharing", ["hard", "cross_stitch"])
def test_without_steps_it_is_protonet(sharing: str, arrays: dict[str, np.ndarray]) -> None:
    """As probabilities, for the logits differ by |f|^2; a hidden class and hidden labels included."""
    ours = axes(sharing, "static", "proto_maml").override({"learner.inner_steps": 0})
    theirs = axes(sharing, "static", "protonet")
    support, query = first(episodes_of(ours, arrays))
    support = support._replace(masks={"left": support.targets["left"] != 3})
    found = []
    for chosen in (ours, theirs):
        algorithm = chosen.build()
        params = perturbed(algorithm)
        predictions = algorithm.predict(algorithm.adapt(params, support), query.inputs)
        found.append({name: logits.log_softmax(-1) for name, logits in predictions.items()})
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-12, atol=1e-12)


def test_without_steps_its_gradient_is_protonets(arrays: dict[str, np.ndarray]) -> None:
    found = []
    for values in (
        {"learner__name": "proto_maml", "learner__inner_steps": 0},
        {"learner__name": "protonet"},
    ):
        chosen = experiment(data__tasks=["left", "right"], **values)
        algorithm = chosen.build()
        found.append(
            meta_gradient(algorithm, perturbed(algorithm), episodes_of(chosen, arrays)).grads
        )
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-10, atol=1e-12)


def by_hand(
    encoder: nn.Module, inputs: Tensor, labels: Tensor, queries: Tensor, first_order: bool
) -> Tensor:
    """Two steps of rate 0.1 on one task, each written down; query logits."""
    features = encoder(inputs)
    # Nodes of their own: the inner gradient does not run through the prototypes, the outer one does.
    phi = {name: value.clone() for name, value in encoder.named_parameters()}
    centres = torch.stack([features[labels == c].mean(0) for c in range(10)])
    weight, bias = 2 * centres, -(centres**2).sum(1)
    logits: Tensor
    for _ in range(2):
        logits = torch.func.functional_call(encoder, phi, (inputs,)) @ weight.T + bias
        loss = F.cross_entropy(logits, labels)
        grads = torch.autograd.grad(loss, [*phi.values(), weight, bias], create_graph=True)
        if first_order:
            grads = tuple(g.detach() for g in grads)
        phi = {name: value - 0.1 * g for (name, value), g in zip(phi.items(), grads, strict=False)}
        weight, bias = weight - 0.1 * grads[-2], bias - 0.1 * grads[-1]
    logits = torch.func.functional_call(encoder, phi, (queries,)) @ weight.T + bias
    return logits


@pytest.mark.parametrize("first_order", [False, True])
def test_it_equals_a_loop_written_by_hand(first_order: bool, arrays: dict[str, np.ndarray]) -> None:
    chosen = experiment(data__tasks=["left"], learner__name="proto_maml", learner__inner_steps=2,
                        learner__inner_lr=0.1, learner__first_order=first_order)  # fmt: skip
    algorithm = chosen.build()
    params = perturbed(algorithm)
    episodes = episodes_of(chosen, arrays)
    computed = meta_gradient(algorithm, params, episodes)
    encoder = chosen.encoder.build(chosen.data.input_shape)
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            value.copy_(params[f"model.encoders.0.{name}"])
    losses = [
        F.cross_entropy(by_hand(encoder, s, y, q, first_order), t)
        for s, y, q, t in zip(episodes.support.inputs, episodes.support.targets["left"], episodes.query.inputs,
                              episodes.query.targets["left"], strict=True)
    ]  # fmt: skip
    total = torch.stack(losses).mean()
    torch.testing.assert_close(computed.losses[0], total.detach(), rtol=1e-10, atol=1e-12)
    grads = torch.autograd.grad(total, list(encoder.parameters()))
    for (name, _), gradient in zip(encoder.named_parameters(), grads, strict=True):
        torch.testing.assert_close(
            computed.grads[f"model.encoders.0.{name}"], gradient, rtol=1e-10, atol=1e-12
        )


def test_absent_classes_stay_the_least_likely(
    arrays: dict[str, np.ndarray],
) -> None:
    """Through all of the steps."""
    chosen = axes("hard", "static", "proto_maml").override({"learner.inner_steps": 3})
    algorithm = chosen.build()
    support, query = first(episodes_of(chosen, arrays))
    support = support._replace(masks={"left": support.targets["left"] != 3})
    adapted = algorithm.adapt(perturbed(algorithm), support)
    logits = algorithm.predict(adapted, query.inputs)["left"]
    shown = torch.cat([logits[:, :3], logits[:, 4:]], dim=1)
    torch.testing.assert_close(logits[:, 3], shown.amin(1) - BELOW)
    assert not adapted["model.heads.left.weight"][3].any()


def test_unlabelled_tasks_score_classes_alike(arrays: dict[str, np.ndarray]) -> None:
    chosen = axes("hard", "static", "proto_maml")
    algorithm = chosen.build()
    support, query = first(episodes_of(chosen, arrays))
    support = support._replace(masks={"left": torch.zeros(len(support.inputs), dtype=torch.bool)})
    predictions = algorithm.predict(algorithm.adapt(perturbed(algorithm), support), query.inputs)
    assert not predictions["left"].any()
    assert predictions["right"].isfinite().all() and predictions["right"].any()


def test_the_models_own_heads_have_no_say(arrays: dict[str, np.ndarray]) -> None:
    chosen = axes("hard", "static", "proto_maml")
    algorithm = chosen.build()
    grads = meta_gradient(algorithm, perturbed(algorithm), episodes_of(chosen, arrays)).grads
    assert not any(gradient.any() for name, gradient in grads.items() if ".heads." in name)


def test_it_says_which_task_it_cannot_learn() -> None:
    reason = ProtoMAML().check(experiment(data__tasks=["left", "sum"]).data.make_tasks())
    assert reason == "a prototype is the mean of a class, and task 'sum' is a regression"
    odd = Task("odd", CLASSIFICATION, 3, lambda shape: nn.Sequential(nn.Linear(shape[0], 3)), F.cross_entropy, {}, lambda p: p)  # fmt: skip
    assert "that of task 'odd' is a Sequential" in present(ProtoMAML().check([odd]))
