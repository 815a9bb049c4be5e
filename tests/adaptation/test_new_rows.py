"""`raymtl adapt` of runs on the user's own files: new rows in the form of the old ones, encoded as these were."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import raymtl
from raymtl.adaptation.adapt import adapt_run
from raymtl.adaptation.request import AdaptationRequest
from raymtl.config import Experiment
from raymtl.data import Files
from raymtl.data.tables.new_labels import read_new_labels
from raymtl.data.tables.new_rows import read_unseen
from raymtl.evaluation.evaluate import load_model
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import UserError
from tests.cli.test_cli import answer, mistake
from tests.data.own import write_csv, write_scenes
from tests.data.texts import sentences
from tests.narrowing import checked


def flats(rows: int = 120, seed: int = 0) -> dict[str, list[Any]]:
    """Rents by size and city; a state, labels, and the landlord who is a group."""
    rng = np.random.default_rng(seed)
    size, city = rng.normal(60, 15, rows), rng.choice(["Bonn", "Kiel", "Trier"], rows)
    rent = 8 * size + 200 * (city == "Bonn")
    return {
        "size (m2)": size.round(2).tolist(),
        "city": city.tolist(),
        "rent": rent.round(1).tolist(),
        "state": np.where(size > 65, "good", np.where(size > 50, "fair", "poor")).tolist(),
        "has": ["lift|garden" if s > 70 else "lift" if s > 55 else "garden" for s in size],
        "landlord": [f"L{i % 12}" for i in range(rows)],
    }


TASKS = {"rent": {}, "state": {"classes": ["poor", "fair", "good"]}, "has": {"kind": "multilabel"}}


def trained(
    folder: Path, data: dict[str, Any], steps: int = 2, inner: int = 1, **more: Any
) -> Path:
    """A run folder as `raymtl train` leaves it."""
    source = data if "name" in data else {"name": "files", "shots": 2, "queries": 4, **data}
    chosen = Experiment.model_validate(
        {
            "data": source,
            "encoder": {"name": "mlp", "hidden": [8]},
            "learner": {"name": "maml", "inner_steps": inner, "inner_lr": 0.01},
            "train": {"steps": steps, "eval_every": steps, "meta_batch": 2},
            "evaluate": {"val_episodes": 2, "test_episodes": 2},
            "tune": {"asha": None},
            **more,
        }
    ).resolve()
    (folder / "best").mkdir(parents=True)
    chosen.save(folder / "config.yaml")
    arrays = chosen.data.load()
    train_loop(
        chosen,
        arrays,
        local_batches(chosen, arrays),
        TrainContext(lambda *_: None, lambda _: None),
        folder / "best",
    )
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flats")
    write_csv(root / "flats.csv", flats())
    trained(root / "run", {"path": str(root / "flats.csv"), "tasks": TASKS, "group": "landlord"})
    return root


def support_file(
    path: Path, without: tuple[str, ...] = (), labelled: int = 20, **changes: Any
) -> Path:
    """New flats, the last ten of them without labels; and no landlords, who say nothing."""
    content = {
        key: values
        for key, values in flats(labelled + 10, seed=1).items()
        if key not in ("landlord", *without)
    }
    for name in set(TASKS) & set(content):
        content[name][labelled:] = [None] * 10
    return write_csv(path, content | changes)


def predictions(told: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(
        Path(told["folder"]) / "predictions.parquet"
    ).to_pylist()
    return rows


def source_of(run: Path) -> Files:
    """Of the best model of a run."""
    return checked(load_model(run / "best")[0].data, Files)


def test_new_rows_are_encoded_as_the_runs(home: Path) -> None:
    """Whatever else is in their file."""
    source = load_model(home / "run" / "best")[0].data
    assert isinstance(source, Files)
    arrays = source.load()
    with (home / "flats.csv").open() as file:
        header, *rows = csv.reader(file)
    some = [rows[i] for i in range(0, 40, 3)]
    content = dict(zip(header, zip(*some, strict=True), strict=True))
    write_csv(
        home / "some.csv", {"comment": ["new"] * len(some), **dict(reversed(content.items()))}
    )
    found = read_unseen(source, str(home / "some.csv"))
    np.testing.assert_array_equal(found.inputs, arrays["inputs"][0:40:3])
    for name in TASKS:
        np.testing.assert_array_equal(found.targets[name], arrays[f"target/{name}"][0:40:3])
        assert found.masks[name].all()
    assert found.classes["state"] == ("poor", "fair", "good")


def test_runs_on_texts_adapt_and_predict(tmp_path: Path) -> None:
    """From Python as by the command; a student of a transfer sees what the model sees."""
    told = {**flats(), "ad": [text or "none" for text in sentences(120)]}
    write_csv(tmp_path / "flats.csv", told)
    inputs = {"ad": "text", "size (m2)": "number"}
    data = {"path": str(tmp_path / "flats.csv"), "inputs": inputs, "tasks": {"rent": {}}}
    run = trained(tmp_path / "run", data)
    new = {**flats(30, seed=1), "ad": [text or "none" for text in sentences(30, seed=1)]}
    write_csv(tmp_path / "new.csv", new)
    adapted = raymtl.adapt(run, tmp_path / "new.csv", tmp_path / "new.csv")
    model = raymtl.load_model(run).adapt(str(tmp_path / "new.csv"))
    assert isinstance(model, raymtl.Model)
    read = torch.from_numpy(read_unseen(source_of(run), str(tmp_path / "new.csv")).inputs)
    assert read.shape == (30, *source_of(run).input_shape)
    values = adapted.predictions["rent.after"].to_numpy()
    np.testing.assert_allclose(model.predict(read)["rent"].numpy(), values, rtol=1e-5)
    transfer: dict[str, Any] = {"student.name": "mlp", "student.hidden": [4], "match": "features"}
    transfer |= {"task.name": "rent", "task.kind": "regression", "optimiser.steps": 2}
    new_rows = tmp_path / "new.csv"
    taught = raymtl.adapt(run, new_rows, new_rows, transfer="target", values=transfer)
    student = taught.model
    assert student(read).shape == (30, 1)


def test_unlabelled_rows_are_predicted_in_their_units(home: Path) -> None:
    """And in the names of their classes."""
    told = adapt_run(AdaptationRequest(home / "run", support_file(home / "new.csv")), 3)
    assert (told["support_examples"], told["predicted_examples"], told["scores"]) == (20, 10, {})
    rows = predictions(told)
    assert len(rows) == 10 and Path(told["folder"]).name == "new"
    for row in rows:
        assert row["rent.target"] is None and 100 < row["rent.after"] < 1200
        assert row["state.after"] in ("poor", "fair", "good") and set(row["has.after"]) <= {
            "lift",
            "garden",
        }
    _, algorithm, params = load_model(home / "run" / "best")
    inputs = torch.from_numpy(read_unseen(source_of(home / "run"), str(home / "new.csv")).inputs)
    expected = algorithm.tasks[0].decode(algorithm.predict(params, inputs[20:])["rent"])
    assert [row["rent.before"] for row in rows] == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_query_file_is_scored_by_its_labels(home: Path) -> None:
    support = support_file(home / "s.csv")
    bare = support_file(home / "q.csv", without=tuple(TASKS))
    told = adapt_run(AdaptationRequest(home / "run", support, bare, name="bare"))
    assert (told["support_examples"], told["predicted_examples"], told["scores"]) == (20, 30, {})
    part = support_file(home / "p.csv", without=("has",))
    told = adapt_run(AdaptationRequest(home / "run", support, part, name="part"))
    rows = predictions(told)
    assert {name.partition(".")[0] for name in told["scores"]} == {"rent", "state"}
    hits = [
        row["state.after"] == row["state.target"] for row in rows if row["state.target"] is not None
    ]
    assert len(hits) == 20 and told["scores"]["state.accuracy"][1] == pytest.approx(np.mean(hits))
    assert all(row["has.target"] is None for row in rows)


def test_adapting_to_new_rows_follows_their_labels(home: Path) -> None:
    """Flats of another country cost a thousand more: before adapting nobody can know, after it the model does."""
    dear = flats(30, seed=1)
    content = {
        "size (m2)": dear["size (m2)"],
        "city": dear["city"],
        "rent": [rent + 1000 for rent in dear["rent"]],
    }
    support = write_csv(home / "dear.csv", content)
    told = adapt_run(AdaptationRequest(home / "run", support, support), 200)
    before, after = told["scores"]["rent.mae"]
    assert after < 0.2 * before


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of episodes of classes: which of up to four kinds of things a row is of."""
    root = tmp_path_factory.mktemp("kinds")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(24, 3)) * 4
    rows = [
        (f"kind {k}", *(centres[k] + rng.normal(size=3) * 0.1)) for k in range(24) for _ in range(8)
    ]
    names = ("thing", "a", "b", "c")
    write_csv(root / "things.csv", dict(zip(names, zip(*rows, strict=True), strict=True)))
    data = {
        "path": str(root / "things.csv"),
        "tasks": {"thing": {}},
        "episodes": "classes",
        "ways": [2, 3],
    }
    trained(root / "run", data, learner={"name": "protonet"})
    return root


def things(path: Path, names: tuple[str, ...], each: int = 4, labelled: bool = True) -> Path:
    rng = np.random.default_rng(5)
    rows = [
        (n if labelled else None, *(4.0 * place + rng.normal(size=3) * 0.1))
        for place, n in enumerate(names)
        for _ in range(each)
    ]
    return write_csv(
        path, dict(zip(("thing", "a", "b", "c"), zip(*rows, strict=True), strict=True))
    )


def test_unseen_classes_are_learned_from_few_rows(kinds: Path) -> None:
    support = things(kinds / "s.csv", ("unicorn", "griffin", "basilisk"))
    query = things(kinds / "q.csv", ("unicorn", "griffin", "basilisk"), each=5)
    told = adapt_run(AdaptationRequest(kinds / "run", support, query))
    assert told["scores"]["thing.accuracy"][1] == 1
    assert [row["thing.after"] for row in predictions(told)] == ["unicorn"] * 5 + [
        "griffin"
    ] * 5 + ["basilisk"] * 5
    nameless = things(kinds / "n.csv", ("unicorn", "griffin", "basilisk"), labelled=False)
    again = predictions(adapt_run(AdaptationRequest(kinds / "run", support, nameless)))
    assert [row["thing.after"] for row in again] == ["unicorn"] * 4 + ["griffin"] * 4 + [
        "basilisk"
    ] * 4
    with pytest.raises(
        UserError,
        match=r"column 'thing': expected labels of 2 to 3 classes, .*got \['a', 'b', 'c', 'd'\]",
    ):
        adapt_run(AdaptationRequest(kinds / "run", things(kinds / "m.csv", ("a", "b", "c", "d"))))
    with pytest.raises(
        UserError,
        match=r"q.csv: row 0, column 'thing': expected one of the classes of the support set",
    ):
        adapt_run(AdaptationRequest(kinds / "run", things(kinds / "x.csv", ("x", "y")), query))


def test_pictures_with_masks_are_adapted_to_and_predicted(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "scenes", 30)
    data = {
        "path": str(root),
        "size": (12, 16),
        "tasks": {"larger": {}, "mask": {"kind": "segmentation"}},
    }
    new = write_scenes(tmp_path / "new", 12)
    for folder in (root, new):
        shutil.rmtree(folder / "depths")  # which are pictures too
    run = trained(tmp_path / "run", data, encoder={"name": "conv", "channels": [4]})
    told = adapt_run(AdaptationRequest(run, new, new), 1)
    assert (told["support_examples"], told["predicted_examples"]) == (12, 12)
    assert 0 <= told["scores"]["mask.miou"][1] <= 1
    row = predictions(told)[1]
    assert row["mask.after.shape"] == [24, 32] and len(row["mask.after"]) == 24 * 32
    assert row["larger.after"] in ("box", "disc")
    only = predictions(adapt_run(AdaptationRequest(run, new, new / "images", name="only"), 1))
    # The same pictures without anything beside them are answered as before.
    assert [r["mask.after"] for r in only] == [r["mask.after"] for r in predictions(told)]
    assert all(r["mask.target"] is None and r["larger.target"] is None for r in only)
    found = read_unseen(source_of(run), str(new))
    assert np.flatnonzero(~found.masks["mask"]).tolist() == [2, 7]  # as its table leaves them away


def test_a_new_task_takes_one_command(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether a flat is large, in words, is nothing that the run was trained on."""
    new = flats(30, seed=3)
    labels = ["large" if size > 60 else "small" for size in new["size (m2)"]]
    content = {
        "size (m2)": new["size (m2)"],
        "city": new["city"],
        "fits": labels[:20] + [None] * 10,
    }
    support = write_csv(home / "fits.csv", content)
    out = answer(
        monkeypatch, capsys, "adapt", str(home / "run"), "--support", str(support), "--transfer", "model", "--json",
        "--set", "optimiser.steps=200", "--set", "optimiser.lr=0.02",
    )  # fmt: skip
    told = json.loads(out)
    assert told["task"] == {
        "name": "fits",
        "kind": "classification",
        "num_classes": 2,
        "classes": ["large", "small"],
    }
    rows = predictions(told)
    assert (
        np.mean([row["fits.after"] == label for row, label in zip(rows, labels[20:], strict=True)])
        >= 0.8
    )
    query = write_csv(home / "asked.csv", {"size (m2)": [20, 120], "city": ["Bonn", "Kiel"]})
    out = answer(
        monkeypatch, capsys, "adapt", str(home / "run"), "--support", str(support), "--query", str(query), "--json",
        "--transfer", "model", "--set", "optimiser.steps=200", "--set", "optimiser.lr=0.02",
    )  # fmt: skip
    assert [row["fits.after"] for row in predictions(json.loads(out))] == ["small", "large"]


def test_a_new_tasks_numbers_are_numbers(home: Path) -> None:
    source = source_of(home / "run")
    write_csv(
        home / "age.csv", {"city": ["Bonn", "Kiel"], "size (m2)": [50, 60], "age": [12.5, None]}
    )
    found = read_new_labels(source, str(home / "age.csv"), None, of_classes=False)
    assert (found.column, found.targets[0], found.classes) == ("age", 12.5, ()) and np.isnan(
        found.targets[1]
    )
    same = read_new_labels(source, str(home / "flats.csv"), "state", of_classes=True)
    assert same.classes == ("poor", "fair", "good")  # in the order that the run has them in


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"city": None}, r"data.inputs: .*bad.csv: expected the column 'city', got"),
        (
            {"state": ["new"] * 30},
            r"bad.csv: row 0, column 'state': expected a label of task 'state', .* got 'new'",
        ),
        (
            {"size (m2)": ["wide"] * 30},
            r"bad.csv: row 0, column 'size \(m2\)': expected a number, got 'wide'",
        ),
        (
            {name: [None] * 30 for name in TASKS},
            r"bad.csv: expected rows with labels to adapt to, got none",
        ),
    ],
)
def test_unfit_files_are_refused_in_one_sentence(
    home: Path, changes: dict[str, Any], says: str
) -> None:
    without = tuple(name for name, values in changes.items() if values is None)
    file = support_file(
        home / "bad.csv", without, **{k: v for k, v in changes.items() if v is not None}
    )
    with pytest.raises(UserError, match=says):
        adapt_run(AdaptationRequest(home / "run", file))


def test_a_query_needs_a_support_set(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new task needs a column."""
    assert "--query: expected --support beside it" in mistake(
        monkeypatch, capsys, "adapt", str(home / "run"), "--query", str(home / "flats.csv")
    )
    assert "gone.csv: no such file" in mistake(
        monkeypatch, capsys, "adapt", str(home / "run"), "--support", str(home / "gone.csv")
    )
    says = mistake(
        monkeypatch,
        capsys,
        "adapt",
        str(home / "run"),
        "--support",
        str(home / "flats.csv"),
        "--transfer",
        "feature",
    )
    assert "expected task.name to say which column holds the labels" in says
