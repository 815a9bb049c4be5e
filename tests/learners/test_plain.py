"""Plain multi-task training: no support set, rows in place of episodes, on any number of workers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from raymtl.config import Experiment, parse
from raymtl.config.sections import Evaluate, Train
from raymtl.data.base import Arrays
from raymtl.data.episodes import build_meta_batch, on_device
from raymtl.data.sources.combined import Several
from raymtl.data.sources.mixture import Mixture
from raymtl.data.sources.sinusoid import Sinusoid
from raymtl.data.tables import Files
from raymtl.encoders import MLPSpec
from raymtl.evaluation.baselines import baselines
from raymtl.learners import Plain
from raymtl.step.execution import ExecutionConfig, stacks
from raymtl.step.meta_gradient import meta_gradient
from raymtl.step.workers import Workers
from raymtl.storage import formats
from raymtl.training.loop import local_batches
from raymtl.types import Episode, UserError
from tests.conftest import experiment, perturbed
from tests.data.own import columns, write_parquet
from tests.narrowing import shared_inputs
from tests.training.runs import Stopped, run

ROWS = 7  # a prime, so that no number of workers divides it


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A table with a number, a yes or no and a class, of which some labels are missing."""
    path = write_parquet(tmp_path_factory.mktemp("plain") / "rows.parquet", columns(tasks=3))
    tasks = {name: {"column": f"task {number}.x"} for number, name in enumerate("abc")}
    return Experiment(
        data=Files(path=str(path), tasks=tasks),
        encoder=MLPSpec(hidden=(6,)),
        learner=Plain(),
        train=Train(batch_size=ROWS, steps=3, eval_every=2),
        evaluate=Evaluate(val_episodes=4),
    ).resolve()


def rows_of(chosen: Experiment, arrays: Arrays, worker: Workers = Workers()) -> tuple[Episode, ...]:
    built = build_meta_batch(
        chosen.training_data,
        arrays,
        seed=chosen.seed,
        step=0,
        indices=worker.share(chosen.train.num_episodes),
        meta_batch=chosen.train.num_episodes,
    )
    return on_device(built, "cpu")


def test_no_support_set_is_drawn(table: Experiment) -> None:
    (stack,) = rows_of(table, table.data.load())
    assert shared_inputs(stack.query).shape[:2] == (ROWS, 1)
    assert shared_inputs(stack.support).shape[:2] == (ROWS, 0)


@pytest.mark.parametrize(
    "source",
    [Sinusoid(), Mixture(), Several(parts={"one": Sinusoid(), "other": Mixture()})],
    ids=["sinusoid", "mixture", "several"],
)
def test_sources_give_rows(source: Sinusoid | Mixture | Several) -> None:
    chosen = Experiment(
        data=source, encoder=MLPSpec(), learner=Plain(), train=Train(batch_size=ROWS)
    )
    stacks = rows_of(chosen, {})
    sizes = [shared_inputs(stack.query).shape[:2] for stack in stacks]
    assert sum(number for number, _ in sizes) == ROWS
    assert {each for _, each in sizes} == {1}
    assert all(not shared_inputs(stack.support).numel() for stack in stacks)


@pytest.mark.usefixtures("float64")
def test_a_step_is_the_gradient_of_ordinary_training(arrays: Arrays) -> None:
    """Of the mean losses of one batch of all rows, by autograd on the module as it is."""
    chosen = experiment(learner__name="none", data__tasks=["left", "sum"])
    algorithm = chosen.build()
    params = perturbed(algorithm)
    (stack,) = rows_of(chosen, arrays)
    assert shared_inputs(stack.query).shape[:2] == (3, 10)
    found = meta_gradient(algorithm, params, stack, execution=ExecutionConfig("rows")).grads
    with torch.no_grad():
        for name, value in algorithm.model.named_parameters():
            value.copy_(params[f"model.{name}"])
    predictions = algorithm.model(shared_inputs(stack.query).flatten(0, 1))
    targets = {name: target.flatten() for name, target in stack.query.targets.items()}
    standardised = (targets["sum"] - 9) / 16.5**0.5
    loss: Tensor = F.cross_entropy(predictions["left"], targets["left"]) + F.mse_loss(
        predictions["sum"][:, 0], standardised
    )
    loss.backward()
    for name, value in algorithm.model.named_parameters():
        torch.testing.assert_close(found[f"model.{name}"], value.grad, rtol=1e-10, atol=1e-12)


def test_workers_draw_the_rows_of_one(table: Experiment) -> None:
    arrays = table.data.load()
    (whole,) = rows_of(table, arrays)
    for size in (2, 3):
        shares = [rows_of(table, arrays, Workers(rank, size))[0] for rank in range(size)]
        inputs = torch.cat([shared_inputs(share.query) for share in shares])
        assert torch.equal(inputs, shared_inputs(whole.query))


def test_without_a_batch_size_episodes_have_no_support(arrays: Arrays) -> None:
    chosen = experiment(learner__name="none", train__meta_batch=3)
    _, _, built = next(local_batches(chosen, arrays)(0))
    (stack,) = stacks(built)
    assert shared_inputs(stack.query).shape[:2] == (3, 10)
    assert not shared_inputs(stack.support).numel()


def test_epochs_are_steps(table: Experiment) -> None:
    chosen = table.override({"train.epochs": 2.5})
    rows = max(table.data.sizes(table.data.load()).values())
    assert chosen.train.steps == -(-5 * rows // (2 * ROWS))
    (note,) = chosen.notes()
    assert note.key == "train.epochs"
    assert f"{chosen.train.steps} steps" in note.text
    saved = parse(chosen.model_dump(mode="json"))
    assert saved == chosen and saved.train.steps == chosen.train.steps
    twice = chosen.override({"train.batch_size": 2 * ROWS})
    assert twice.train.steps == -(-5 * rows // (4 * ROWS))
    assert chosen.override({"train.steps": 9}).train.epochs is None


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"train": {"batch_size": 8, "meta_batch": 8}}, "train.batch_size: .* train.meta_batch"),
    ({"train": {"batch_size": 8, "epochs": 1, "steps": 9}}, "train.epochs: .* train.steps"),
    ({"train": {"epochs": 1}}, "train.epochs: expected train.batch_size beside it"),
    ({"train": {"batch_size": 2, "workers": 3}}, "train.batch_size: expected a row for each"),
    (
        {"train": {"batch_size": 8}, "learner": {"name": "maml"}},
        "train.batch_size: expected none with learner.name: maml",
    ),
    (
        {"train": {"batch_size": 8}, "sharing": {"name": "adversarial"}},
        "train.batch_size: expected none with sharing.name: adversarial",
    ),
    ({"data": {"name": "digits", "episodes": "classes"}}, "learner.name: none reads no support"),
    ({"encoder": {"name": "conv", "norm": "batch"}}, "encoder: its batch norms"),
    (
        {"train": {"batch_size": 8, "epochs": 1}, "data": {"name": "sinusoid"}},
        "train.epochs: expected train.steps with data.name: sinusoid",
    ),
    (
        {
            "train": {"batch_size": 8, "epochs": 1},
            "search": {"train.batch_size": {"choice": [8, 16]}},
        },
        "search.train.batch_size: expected train.steps",
    ),
]


@pytest.mark.parametrize(("tree", "message"), REFUSED)
def test_what_cannot_be_is_one_sentence(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse({"learner": {"name": "none"}, **tree}).resolve()


def test_joint_training_is_not_compared_with_itself(table: Experiment) -> None:
    assert "joint" in baselines(experiment(), experiment())
    assert set(baselines(table, table)) == {"default", "single-a", "single-b", "single-c"}


def test_resumed_trainings_on_rows_end_alike(table: Experiment, tmp_path: Path) -> None:
    arrays = table.data.load()
    run(table, arrays, tmp_path / "straight")
    with pytest.raises(Stopped):
        run(table, arrays, tmp_path / "broken", stop_at=2)
    run(table, arrays, tmp_path / "broken")
    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("straight", "broken")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    rows = [
        formats.read_rows(tmp_path / name / "history.parquet") for name in ("straight", "broken")
    ]
    assert [row["loss.a"] for row in rows[0]] == [row["loss.a"] for row in rows[1]]
    assert len({row["loss.a"] for row in rows[0]}) == 3  # every step has rows of its own
