"""Attention over tasks."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from raymtl.encoders import ConvSpec, MLPSpec
from raymtl.encoders.norm import NormedSpec
from raymtl.sharing import AttentionSpec
from raymtl.tasks import classification
from raymtl.types import Task, UserError
from tests.conftest import experiment
from tests.sharing.laws import assert_predicts_as_hard_sharing

pytestmark = pytest.mark.usefixtures("float64")

TASKS = tuple(classification(name, 3) for name in "abc")
NAMES = tuple(task.name for task in TASKS)
ENCODERS = {"mlp": (MLPSpec(hidden=(6, 5)), (4,)), "conv": (ConvSpec(channels=(4, 4)), (1, 6, 6))}
over_the_encoders = pytest.mark.parametrize("encoder, shape", ENCODERS.values(), ids=ENCODERS)


def build(
    encoder: Any, shape: tuple[int, ...], tasks: Sequence[Task] = TASKS, **numbers: Any
) -> Any:
    """Moved off the small embeddings of the beginning, so that attention is far from uniform."""
    model = AttentionSpec(**numbers).build(tasks, [encoder.build(shape) for _ in tasks])
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.split(".")[0] in ("queries", "keys", "query_map", "key_map"):
                value.copy_(torch.randn_like(value))
    return model


@over_the_encoders
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_features_equal_a_loop(encoder: NormedSpec, shape: tuple[int, ...], heads: int) -> None:
    """With five features in two parts these are three and two, in three parts two, two and one."""
    model, inputs = build(encoder, shape, heads=heads, dim=4), torch.randn(3, *shape)
    features, attention = model(inputs, output="features"), model.attention(inputs)
    for n, x in enumerate(inputs):
        outputs = {task: model.towers[task](x[None])[0] for task in NAMES}
        width = len(outputs["a"])
        sizes = [width // heads + (h < width % heads) for h in range(heads)]
        owner = [h for h, size in enumerate(sizes) for _ in range(size)]
        for t, task in enumerate(NAMES):
            expected = torch.zeros(width)
            for h in range(heads):
                rows = slice(4 * h, 4 * h + 4)
                query = model.query_map.weight[rows] @ outputs[task] + model.queries[task][h]
                keys = [model.key_map.weight[rows] @ outputs[s] + model.keys[s][h] for s in NAMES]
                scores = torch.stack([(query @ key / 2).exp() for key in keys])
                weights = scores / scores.sum()
                torch.testing.assert_close(attention[n, h, t], weights)
                mine = torch.tensor([float(head == h) for head in owner])
                expected = expected + mine * sum(
                    w * outputs[s] for w, s in zip(weights, NAMES, strict=True)
                )
            torch.testing.assert_close(features[task][n], expected)


@over_the_encoders
def test_zero_queries_give_the_mean_tower(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    model, inputs = build(encoder, shape), torch.randn(3, *shape)
    with torch.no_grad():
        model.query_map.weight.zero_()
        for query in model.queries.values():
            query.zero_()
    torch.testing.assert_close(model.attention(inputs), torch.full((3, 4, 3, 3), 1 / 3))
    mean = torch.stack([tower(inputs) for tower in model.towers.values()]).mean(0)
    for own in model(inputs, output="features").values():
        torch.testing.assert_close(own, mean)


@over_the_encoders
def test_attention_lies_in_the_simplex(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    """The rows are far from uniform here."""
    attention = build(encoder, shape).attention(torch.randn(5, *shape))
    assert attention.shape == (5, 4, 3, 3) and (attention >= 0).all()
    torch.testing.assert_close(attention.sum(-1), torch.ones(5, 4, 3))
    assert attention.max() > 0.8


def test_attention_starts_about_uniform() -> None:
    encoder, shape = ENCODERS["mlp"]
    model = AttentionSpec().build(TASKS, [encoder.build(shape) for _ in TASKS])
    torch.testing.assert_close(
        model.attention(torch.randn(5, *shape)), torch.full((5, 4, 3, 3), 1 / 3), atol=0.1, rtol=0
    )


@over_the_encoders
def test_permuting_the_tasks_permutes_the_predictions(
    encoder: NormedSpec, shape: tuple[int, ...]
) -> None:
    model, inputs = build(encoder, shape), torch.randn(3, *shape)
    renamed = dict(zip(NAMES, "cab", strict=True))
    other = build(encoder, shape)
    other.load_state_dict(
        {
            ".".join(renamed.get(part, part) for part in key.split(".")): v
            for key, v in model.state_dict().items()
        }
    )
    predictions = other(inputs)
    for task, prediction in model(inputs).items():
        torch.testing.assert_close(predictions[renamed[task]], prediction)
    order = [NAMES.index(renamed[task]) for task in NAMES]
    torch.testing.assert_close(
        other.attention(inputs)[:, :, order][..., order], model.attention(inputs)
    )


@over_the_encoders
def test_one_task_alone_is_hard_sharing(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    tower = encoder.build(shape)
    model = AttentionSpec().build(TASKS[:1], [tower])
    assert_predicts_as_hard_sharing(model, tower, TASKS[:1], shape, exactly=True)


def test_towers_run_once_for_all_tasks() -> None:
    model = build(*ENCODERS["mlp"])
    calls: list[tuple[str, int]] = []
    for name, tower in model.towers.items():
        tower.register_forward_hook(
            lambda _, inputs, __, name=name: calls.append((name, len(inputs[0])))
        )
    model({task: torch.randn(1 + i, 4) for i, task in enumerate(NAMES)})
    assert calls == [("a", 6), ("b", 6), ("c", 6)]


def test_queries_are_private_and_keys_shared() -> None:
    shared = build(*ENCODERS["mlp"]).shared
    assert not any(name.startswith("queries") for name in shared)
    assert {f"keys.{task}" for task in NAMES} | {"query_map.weight", "key_map.weight"} <= shared


def test_more_heads_than_features_are_refused_by_name() -> None:
    with pytest.raises(
        UserError, match=r"sharing\.heads: expected at most the 8 features of the encoder, got 9"
    ):
        experiment(sharing__name="attention", sharing__heads=9)
