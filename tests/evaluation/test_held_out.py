"""Every held-out example is scored once where a model does not adapt, and what stands behind other scores is known."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch

from raymtl.config import Experiment
from raymtl.data import Source
from raymtl.data.episodes import generators
from raymtl.data.sources.digits import Digits
from raymtl.data.tables import Files
from raymtl.evaluation.baselines import table
from raymtl.evaluation.evaluate import Evaluation, evaluate, evaluate_folder
from raymtl.evaluation.held_out import held_out_split, scored
from raymtl.evaluation.score_notes import history_notes
from raymtl.evaluation.scores import refuse_unscored, validation_scores
from raymtl.step.execution import ExecutionConfig
from raymtl.step.workers import Workers
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import UserError
from tests.data.own import write_parquet
from tests.drawing import one_episode
from tests.narrowing import present, shared_inputs

ROWS = 300


def table_of(folder: Path, rows: int = ROWS, **more: list[Any]) -> Path:
    """Two inputs, a number, a class of three, a yes or no, and a task with labels in a few rows for training."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 2))
    noise = rng.normal(size=(rows, 3))
    content = {
        "a": x[:, 0].tolist(),
        "b": x[:, 1].tolist(),
        "price": (x[:, 0] - x[:, 1] + noise[:, 0]).tolist(),
        "kind": np.array(["x", "y", "z"])[
            np.digitize(x[:, 0] + 0.5 * noise[:, 1], [-0.5, 0.5])
        ].tolist(),
        "sold": (x[:, 1] + noise[:, 2] > 0).tolist(),
    }
    return write_parquet(folder / "d.parquet", {**content, **more})


def files(path: Path, tasks: dict[str, Any], **values: Any) -> Experiment:
    data = {
        "name": "files",
        "path": str(path),
        "tasks": tasks,
        "inputs": ["a", "b"],
        "shots": 4,
        "queries": 4,
    }
    return Experiment.model_validate(
        {
            "data": {**data, **values},
            "encoder": {"name": "mlp", "hidden": [8]},
            "learner": {"name": "maml", "inner_steps": 0},
            "train": {"steps": 4, "eval_every": 2},
            "evaluate": {"val_episodes": 3, "test_episodes": 3},
        }
    ).resolve()


THREE: dict[str, dict[str, Any]] = {"price": {}, "kind": {}, "sold": {}}


def evaluated(experiment: Experiment, **execution: Any) -> Evaluation:
    algorithm = experiment.build()
    return evaluate(
        experiment, algorithm, algorithm.init_params(), experiment.data.load(), **execution
    )


def test_scores_are_those_of_all_test_rows(tmp_path: Path) -> None:
    chosen = files(table_of(tmp_path), THREE)
    arrays = chosen.data.load()
    algorithm = chosen.build()
    params = algorithm.init_params()
    rows = np.flatnonzero(arrays["side"] == 2)
    with torch.no_grad():
        said = algorithm.predict(params, torch.from_numpy(arrays["inputs"][rows]))
    found = evaluate(chosen, algorithm, params, arrays).metrics
    price = algorithm.tasks[0].decode(said["price"])
    expected = {
        ("price", "r2"): sklearn.metrics.r2_score(arrays["target/price"][rows], price),
        ("kind", "accuracy"): sklearn.metrics.accuracy_score(
            arrays["target/kind"][rows], said["kind"].argmax(1)
        ),
        ("sold", "auroc"): sklearn.metrics.roc_auc_score(
            arrays["target/sold"][rows], said["sold"][:, 0]
        ),
    }
    for (task, metric), value in expected.items():
        # Two logits in one bin count as ranked alike.
        tolerance = 2e-3 if metric == "auroc" else 1e-6
        assert found["tasks"][task][metric]["after"]["mean"] == pytest.approx(
            value, abs=tolerance
        ), metric
    mean = np.mean(list(expected.values()))
    assert found["score"]["after"]["mean"] == pytest.approx(mean, abs=1e-3)
    assert (
        found["scored"]["examples"] == dict.fromkeys(THREE, len(rows)) and found["episodes"] is None
    )
    assert found["scored"]["text"] == f"Every one of the {len(rows)} test examples was scored once."


def test_unadapted_scores_ignore_the_episodes(tmp_path: Path) -> None:
    path = table_of(tmp_path)
    one = evaluated(files(path, THREE)).metrics
    other = evaluated(files(path, THREE, shots=1, queries=9), episodes=50).metrics
    assert one["tasks"] == other["tasks"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_workers_score_every_row_between_them_once(tmp_path: Path, size: int) -> None:
    chosen = files(table_of(tmp_path, rows=3000), THREE)
    arrays, algorithm = chosen.data.load(), chosen.build()
    held = held_out_split(chosen, algorithm, arrays, "val", 3)
    parts = [
        one
        for rank in range(size)
        for one in scored(held, algorithm, algorithm.init_params(), workers=Workers(rank, size))
    ]
    inputs = torch.cat([shared_inputs(part.batch) for part in parts])
    own = torch.from_numpy(arrays["inputs"][arrays["side"] == 1])
    assert torch.equal(inputs.sort(0).values, own.sort(0).values)


def test_validation_while_training_is_evaluation(tmp_path: Path) -> None:
    chosen = files(table_of(tmp_path), THREE)
    algorithm, arrays = chosen.build(), chosen.data.load()
    params = algorithm.init_params()
    with torch.no_grad():
        scores = validation_scores(chosen, algorithm, params, arrays, ExecutionConfig(), Workers())
    full = evaluate(chosen, algorithm, params, arrays, split="val").metrics
    for task, metrics in full["tasks"].items():
        for name, value in metrics.items():
            assert scores[f"val.{task}.{name}"] == pytest.approx(value["after"]["mean"], abs=1e-12)
    assert scores["val.score"] == pytest.approx(full["score"]["after"]["mean"], abs=1e-12)
    both = [present(scores[f"val.{task}.accuracy"]) for task in ("kind", "sold")]
    assert scores["val.accuracy"] == pytest.approx(np.mean(both))
    assert (
        set(scores) <= set(chosen.metric_names())
        and chosen.metric_directions()["val.log_loss"] is False
    )


def test_more_episodes_shrink_no_adapting_interval(tmp_path: Path) -> None:
    chosen = files(table_of(tmp_path), {"kind": {}}).override({"learner.inner_steps": 1})
    few, many = (evaluated(chosen, episodes=number).metrics for number in (30, 400))
    width = [found["tasks"]["kind"]["accuracy"]["after"]["ci95"] for found in (few, many)]
    rows = few["scored"]["populations"]["row"]
    accuracy = many["tasks"]["kind"]["accuracy"]["after"]["mean"]
    assert width[1] > 0.6 * 1.96 * math.sqrt(accuracy * (1 - accuracy) / rows)
    assert width[1] > 0.6 * width[0]
    text = "400 test episodes were scored; an episode is 4 rows to adapt to and 4 to predict of the split, drawn at random."
    assert many["scored"]["text"] == f"{text} Behind them stand {rows} rows."


def test_rows_of_a_patient_are_one_member(tmp_path: Path) -> None:
    path = table_of(tmp_path, patient=[f"p{row // 10}" for row in range(ROWS)])
    grouped = evaluated(files(path, {"kind": {}}, group="patient"))
    partition = grouped.estimators["kind.accuracy"].partitions["patient"]
    assert 2 < len(partition.left_out) < 10 and partition.shares.sum() == pytest.approx(1)
    assert "patients" in grouped.metrics["scored"]["text"]


SOURCES: dict[str, Source] = {
    "domains": Digits(shots=1, queries=2),
    "classes": Digits(episodes="classes", ways=3, queries=2),
}


@pytest.mark.parametrize("name", SOURCES)
def test_members_are_those_of_the_drawn_episode(name: str) -> None:
    source = SOURCES[name]
    arrays = source.load()
    sizes = {own.name: own.size for own in source.populations(arrays, "test")}
    for index in range(5):
        episode, _ = one_episode(source, arrays, "test", index)
        members = source.query_members(arrays, "test", generators(0, "test", 0, [index]))
        assert set(members) == set(episode.query.targets)
        for task, own in members.items():
            assert set(own) == set(sizes)
            for population, numbers in own.items():
                assert len(numbers) == len(episode.query.targets[task])
                assert numbers.min() >= 0 and numbers.max() < sizes[population]


def test_members_are_the_drawn_rows(tmp_path: Path) -> None:
    source = files(table_of(tmp_path), {"kind": {}}).data
    arrays = source.load()
    rows = arrays["rows/test"]
    for index in range(5):
        episode, _ = one_episode(source, arrays, "test", index)
        own = source.query_members(arrays, "test", generators(0, "test", 0, [index]))["kind"]["row"]
        assert torch.equal(
            torch.from_numpy(arrays["inputs"][rows[own]]), shared_inputs(episode.query)
        )


def sparse(folder: Path) -> Path:
    """A task with labels in ten rows for training alone."""
    part = ["train"] * 200 + ["val"] * 50 + ["test"] * 50
    rare: list[Any] = [float(row % 7) if row < 10 else None for row in range(ROWS)]
    same = [float(row % 5) if row < 200 else 1.0 for row in range(ROWS)]
    return table_of(folder, part=part, rare=rare, same=same)


def test_unlabelled_tasks_have_no_score(tmp_path: Path) -> None:
    """They are trained."""
    chosen = files(
        sparse(tmp_path), {"price": {}, "rare": {"kind": "regression"}}, split={"column": "part"}
    )
    arrays = chosen.data.load()
    folder = tmp_path / "model"
    train_loop(
        chosen,
        arrays,
        local_batches(chosen, arrays),
        TrainContext(lambda metrics: None, lambda row: None),
        folder,
    )
    evaluate_folder(folder, arrays, chosen.data)
    metrics = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert metrics["tasks"]["rare"]["r2"]["after"] == dict.fromkeys(("mean", "ci95", "low", "high"))
    assert metrics["score"]["after"]["mean"] == metrics["tasks"]["price"]["r2"]["after"]["mean"]
    named = [note["text"] for note in metrics["notes"] if note["place"] == "task 'rare'"]
    assert named == [
        "no label among the scored examples of test, so it has no score and is left out of the mean"
    ]
    said = [str(note) for note in chosen.data.notes(arrays) if note.place == "task 'rare'"]
    assert len([text for text in said if "no row of val has a label" in text]) == 1


def test_searching_by_unlabelled_tasks_is_refused(tmp_path: Path) -> None:
    """Where they lack labels for validation."""
    tasks = {"price": {}, "rare": {"kind": "regression"}}
    chosen = files(sparse(tmp_path), tasks, split={"column": "part"})
    search = {"search": {"train.lr": {"uniform": [0.001, 0.01]}}, "tune": {"metric": "val.rare.r2"}}
    chosen = Experiment.model_validate(chosen.model_dump(mode="json") | search).resolve()
    with pytest.raises(UserError, match=r"^tune\.metric: .*got val\.rare\.r2"):
        refuse_unscored(chosen, chosen.data.load())
    alone = files(sparse(tmp_path), {"same": {"kind": "regression"}}, split={"column": "part"})
    with pytest.raises(
        UserError,
        match=r"^data\.split: expected rows for validation with labels that differ.*same\.r2",
    ):
        refuse_unscored(alone, alone.data.load())


def test_a_named_score_chooses(tmp_path: Path) -> None:
    path = table_of(tmp_path)
    found = evaluated(
        files(path, {"price": {"metric": "mae"}, "sold": {"metric": "log_loss"}})
    ).metrics
    errors = [found["tasks"]["price"]["mae"], found["tasks"]["sold"]["log_loss"]]
    assert found["score"]["after"]["mean"] == pytest.approx(
        -np.mean([one["after"]["mean"] for one in errors])
    )
    assert found["tasks"]["sold"]["log_loss"]["shown"]
    with pytest.raises(
        UserError,
        match=r"^data\.tasks\.price\.metric: expected one of r2, mae, rmse, rrmse.*'auroc'",
    ):
        files(path, {"price": {"metric": "auroc"}}).data.make_tasks()


def test_predictions_of_one_class_alone_are_noted(tmp_path: Path) -> None:
    chosen = files(table_of(tmp_path), {"kind": {}, "sold": {}})
    algorithm = chosen.build()
    params = algorithm.init_params()
    for name in params:
        if ".heads." in name:
            params[name].detach().zero_()
            if name.endswith("bias") and params[name].numel() == 3:
                params[name].detach()[1] = 5
    notes = evaluate(chosen, algorithm, params, chosen.data.load()).metrics["notes"]
    assert {(note["place"], note["text"]) for note in notes} == {
        ("task 'kind'", "every prediction on test is 'y'"),
        ("task 'sold'", "every prediction on test is 'false'"),
    }


def test_a_score_that_never_moves_is_noted(tmp_path: Path) -> None:
    tasks = files(table_of(tmp_path), {"kind": {}}).data.make_tasks()
    still, moving = (
        [{"val.kind.accuracy": value} for value in values]
        for values in ([0.4] * 3, [0.4, 0.4, 0.5])
    )
    (note,) = history_notes(tasks, still)
    assert (
        str(note)
        == "task 'kind': accuracy on validation was 0.4 at every one of 3 scorings (train.lr)"
    )
    assert not list(history_notes(tasks, moving))


def test_models_are_compared_on_the_same_rows(tmp_path: Path) -> None:
    chosen = files(table_of(tmp_path), THREE)
    arrays = chosen.data.load()
    folders = {}
    for name, lr in (("winner", 0.05), ("default", 0.01)):
        model = chosen.override({"train.lr": lr, "train.steps": 60})
        folders[name] = tmp_path / name
        train_loop(
            model,
            arrays,
            local_batches(model, arrays),
            TrainContext(lambda m: None, lambda row: None),
            folders[name],
        )
        evaluate_folder(folders[name], arrays, model.data)
    winner, default = table(folders)
    difference = winner["against"]["default"]["score"]
    means = [row["score"]["after"]["mean"] for row in (winner, default)]
    assert difference["mean"] == pytest.approx(means[0] - means[1])
    unpaired = math.hypot(*(row["score"]["after"]["ci95"] for row in (winner, default)))
    assert 0 < difference["ci95"] < 0.8 * unpaired
    assert default["against"]["winner"]["score"]["mean"] == -difference["mean"]


def far_scores(folder: Path, shift: float, unit: float) -> dict[str, Any]:
    """Test scores of a training on labels that are a normal number in this unit, shifted."""
    values = np.random.default_rng(1).normal(size=ROWS)
    near = (values + 0.1 * np.random.default_rng(2).normal(size=ROWS)).tolist()
    path = table_of(folder, near=near, far=(shift + unit * values).tolist())
    chosen = files(path, {"far": {}}, inputs=["a", "near"]).override(
        {"train.steps": 80, "train.lr": 0.02}
    )
    arrays = chosen.data.load()
    train_loop(
        chosen,
        arrays,
        local_batches(chosen, arrays),
        TrainContext(lambda m: None, lambda row: None),
        folder / "m",
    )
    evaluate_folder(folder / "m", arrays, chosen.data)
    metrics: dict[str, Any] = json.loads((folder / "m" / "metrics.json").read_text())
    return dict(metrics["tasks"]["far"])


@pytest.fixture(scope="module")
def plain_far_scores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return far_scores(tmp_path_factory.mktemp("plain"), 0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("offset", "scale"), [(1e9, 10.0), (1e8, 1.0), (0.0, 1e-30)])
def test_learning_ignores_shift_and_scale_of_labels(
    plain_far_scores: dict[str, Any], tmp_path: Path, offset: float, scale: float
) -> None:
    plain, own = plain_far_scores, far_scores(tmp_path, offset, scale)
    assert plain["r2"]["after"]["mean"] > 0.8
    assert own["r2"]["after"]["mean"] == pytest.approx(plain["r2"]["after"]["mean"], abs=1e-3)
    assert own["mae"]["after"]["mean"] == pytest.approx(
        scale * plain["mae"]["after"]["mean"], rel=1e-3
    )


def test_few_shot_files_count_classes_as_population(tmp_path: Path) -> None:
    kinds = [f"k{row % 30:02d}" for row in range(ROWS)]
    path = table_of(tmp_path, species=kinds)
    few = {"episodes": "classes", "ways": 2, "shots": 2, "queries": 3}
    chosen = files(path, {"species": {}}, **few).override({"learner.name": "protonet"})
    assert isinstance(chosen.data, Files)
    found = evaluated(chosen, episodes=20)
    assert found.metrics["whole"] == ["class of species"]
    assert "classes of species" in found.metrics["scored"]["text"]
    assert set(found.estimators["species.accuracy"].partitions) == {
        "class of species",
        "episodes",
        "examples",
    }
