"""`raymtl predict RUN ROWS --output DIR`: any number of rows, block by block."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import raymtl
from raymtl.data import Files
from raymtl.distributed.predict_rows import on_ray
from raymtl.prediction import parts as parts_module
from raymtl.prediction.new_rows import RowsToPredict
from raymtl.prediction.parts import Job, Part, PartEntry, predict_parts
from raymtl.prediction.predict import predict_to_folder
from raymtl.prediction.trained import load_trained
from raymtl.types import UserError
from tests.adaptation.test_new_rows import flats, trained
from tests.cli.test_cli import answer, mistake
from tests.data.own import write_csv, write_parquet, write_pictures
from tests.distributed.local import local_ray

TASKS: dict[str, dict[str, Any]] = {
    "rent": {},
    "state": {"classes": ["poor", "fair", "good"]},
    "has": {"kind": "multilabel"},
    "large": {},
}
ROWS, GROUP = 230, 40
NOWHERE = ["--address", "127.0.0.1:1"]
"""A cluster that nobody has started; whoever asks for it says so in other words."""


def content(rows: int, seed: int) -> dict[str, list[Any]]:
    """Flats with a key, and whether they are large."""
    columns = flats(rows, seed)
    columns["id"] = [f"flat {seed}/{number}" for number in range(rows)]
    columns["large"] = ["yes" if size > 60 else "no" for size in columns["size (m2)"]]
    return columns


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that does not adapt, and new rows in row groups."""
    root = tmp_path_factory.mktemp("predict")
    write_csv(root / "flats.csv", content(200, 0))
    data = {"path": str(root / "flats.csv"), "tasks": TASKS, "split": {"key": "id"}}
    trained(root / "run", data, steps=20, inner=0)
    write_parquet(root / "new.parquet", content(ROWS, 1), GROUP)
    return root


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two row groups in a file."""
    monkeypatch.setattr(parts_module, "MOST_ROWS", 2 * GROUP)


def job_of(home: Path, output: Path) -> Job:
    model = load_trained(home / "run")
    return Job(model, RowsToPredict(model, str(home / "new.parquet")), str(output))


def silent(done: int, rows: int) -> None:
    """Nobody looks."""


def test_files_of_a_folder_are_the_table_in_memory(home: Path, tmp_path: Path) -> None:
    """To the bit and in its order; one file has the same."""
    table = raymtl.predict(home / "run", home / "new.parquet")
    written = raymtl.predict(home / "run", home / "new.parquet", output=tmp_path / "out")
    assert (written.num_rows, written.num_files, written.notes) == (ROWS, 3, ())
    assert pq.read_table(tmp_path / "out").equals(table)
    one = raymtl.predict(home / "run", home / "new.parquet", output=tmp_path / "one.parquet")
    assert (one.num_rows, one.num_files) == (ROWS, 1)
    assert pq.read_table(tmp_path / "one.parquet").equals(table)
    assert table["row"].to_pylist() == list(range(ROWS))
    assert table["id"].to_pylist() == content(ROWS, 1)["id"]


def test_predictions_are_those_of_evaluate(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the rows of the test split, but for the last bits of products of other batches."""
    file = tmp_path / "test.parquet"
    answer(monkeypatch, capsys, "evaluate", str(home / "run"), "--predictions", str(file))
    held_out = pq.read_table(file)
    answer(
        monkeypatch, capsys, "predict", str(home / "run"), str(home / "flats.csv"),
        "--output", str(tmp_path / "out"),
    )  # fmt: skip
    everywhere = pq.read_table(tmp_path / "out").take(held_out["row"])
    assert len(held_out) > 20 and held_out.column_names == everywhere.column_names
    for name in held_out.column_names:
        expected, got = held_out[name].to_pylist(), everywhere[name].to_pylist()
        if pa.types.is_floating(held_out[name].type) and None not in expected:
            assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)
        else:
            assert got == expected


def test_probabilities_are_those_of_the_logits(home: Path, tmp_path: Path) -> None:
    """In float64 from the raw rows, without the encoding of raymtl."""
    raymtl.predict(home / "run", home / "new.parquet", output=tmp_path / "out")
    model = load_trained(home / "run")
    rows = content(ROWS, 1)
    encoded: list[np.ndarray] = []
    source = model.experiment.data
    assert isinstance(source, Files)
    for column in source.found.columns:
        values = np.array(rows[column.column])
        if column.role == "number":
            encoded.append(((values - column.mean) / column.std)[:, None])
        else:
            encoded.append(values[:, None] == np.array([*column.categories, "of another"]))
    inputs = torch.from_numpy(np.concatenate(encoded, axis=1).astype(float))
    twice = {name: value.double() for name, value in model.params.items()}
    with torch.no_grad():
        logits = model.algorithm.predict(twice, inputs)
    table = pq.read_table(tmp_path / "out")
    likely = logits["state"].softmax(1)
    for place, name in enumerate(TASKS["state"]["classes"]):
        got = table[f"state.probability.{name}"].to_pylist()
        assert got == pytest.approx(likely[:, place].tolist(), abs=1e-5)
    yes = table["large.probability.yes"].to_pylist()
    assert yes == pytest.approx(logits["large"][:, 0].sigmoid().tolist(), abs=1e-5)


def test_an_interrupted_prediction_is_continued(home: Path, tmp_path: Path) -> None:
    """What is there stays; nothing says that it is complete before it is."""
    output = tmp_path / "out"

    def killed(job: Job, parts: Sequence[Part]) -> Iterator[PartEntry]:
        yield from predict_parts(job, parts[:1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_to_folder(job_of(home, output), driver=killed, report=silent)
    assert sorted(path.name for path in output.iterdir()) == [
        "_predictions.json",
        "part-000000.parquet",
    ]
    (output / ".part-000001.parquet.host.1").write_bytes(b"half")
    first = (output / "part-000000.parquet").stat().st_mtime_ns
    done: list[int] = []
    written = predict_to_folder(job_of(home, output), report=lambda rows, of_all: done.append(rows))
    assert written.num_rows == ROWS and done == [160, 230]
    assert (output / "part-000000.parquet").stat().st_mtime_ns == first
    assert (output / "_SUCCESS").exists() and not list(output.glob(".*"))
    assert pq.read_table(output).equals(raymtl.predict(home / "run", home / "new.parquet"))


def test_other_rows_do_not_continue_it(home: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"

    def killed(job: Job, parts: Sequence[Part]) -> Iterator[PartEntry]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        predict_to_folder(job_of(home, output), driver=killed, report=silent)
    other = write_parquet(tmp_path / "other.parquet", content(ROWS, 2), GROUP)
    with pytest.raises(UserError, match="another model or other rows"):
        raymtl.predict(home / "run", other, output=output)


def test_ray_writes_the_files_of_a_plain_loop(home: Path, tmp_path: Path) -> None:
    """To the bit; and a mistake in a row is the user's, in one sentence."""
    predict_to_folder(job_of(home, tmp_path / "loop"), report=silent)
    rows = content(ROWS, 1)
    rows["city"][200] = "Ulm"
    write_parquet(tmp_path / "new.parquet", rows, GROUP)
    (tmp_path / "run").symlink_to(home / "run")
    with local_ray(num_cpus=2, include_dashboard=False):
        predict_to_folder(job_of(home, tmp_path / "ray"), driver=on_ray, report=silent)
        with pytest.raises(UserError, match="row 200, column 'city'"):
            predict_to_folder(job_of(tmp_path, tmp_path / "no"), driver=on_ray, report=silent)
    assert not (tmp_path / "no" / "_SUCCESS").exists()
    for path in (tmp_path / "loop").glob("part-*"):
        assert (tmp_path / "ray" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "ray" / "_SUCCESS").exists()


def test_damaged_pictures_are_left_out_with_a_note(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", 24)
    data = {"path": str(root), "tasks": {"colour": {}}, "size": 8, "shots": 2, "queries": 2}
    run = trained(tmp_path / "run", data, inner=0)
    new = write_pictures(tmp_path / "new", 12)
    damaged = next(new.rglob("img 003*"))
    damaged.write_bytes(damaged.read_bytes()[:40])
    written = raymtl.predict(run, new, output=tmp_path / "out")
    assert written.num_rows == 11 and "1 cannot be read" in str(written.notes[-1])
    named = pq.read_table(tmp_path / "out")["picture"].to_pylist()
    assert len(named) == 11 and not any("img 003" in name for name in named)


MISTAKES = {
    "row": ("new.parquet", "file.parquet", "expected a file that does not exist yet"),
    "complete": ("new.parquet", "complete", "expected a folder that does not exist yet"),
    "other": ("new.parquet", "other", "expected an empty folder"),
    "plain": ("new.parquet", "note.txt", "whose name ends in .parquet, got the file"),
    "none": ("new.parquet", "", "got none"),
    "gone": ("no.parquet", "out", "no such file"),
    "column": ("lacks.parquet", "out", "'city'"),
    "word": ("word.csv", "out", "row 3, column 'size (m2)'"),
    "category": ("ulm.csv", "out", "row 5, column 'city': expected one of the values that"),
    "class": ("ruin.csv", "out", "row 7, column 'state'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(
    name: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before a cluster is asked for, but for what only the rows say."""
    monkeypatch.chdir(tmp_path)
    rows, output, says = MISTAKES[name]
    lacks = content(20, 3)
    del lacks["city"]
    write_parquet(tmp_path / "lacks.parquet", lacks)
    for file, column, row, value in (
        ("word", "size (m2)", 3, "wide"), ("ulm", "city", 5, "Ulm"), ("ruin", "state", 7, "ruin")
    ):  # fmt: skip
        odd = content(20, 3)
        odd[column][row] = value
        write_csv(tmp_path / f"{file}.csv", odd)
    write_parquet(tmp_path / "new.parquet", content(20, 3))
    Path("file.parquet").write_bytes(b"")
    Path("note.txt").write_text("mine")
    for folder, file in (("complete", "_SUCCESS"), ("other", "mine.txt")):
        Path(folder).mkdir()
        Path(folder, file).write_text("")
    cluster = [] if rows.endswith(".csv") else NOWHERE
    words = ("predict", str(home / "run"), rows, "--output", output, *cluster)
    message = mistake(monkeypatch, capsys, *words)
    assert says in message and message.count("\n") <= 1
    assert not Path("out", "_SUCCESS").exists()


def test_rows_that_cannot_be_predicted_in_blocks_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "flats.csv", content(100, 0))
    data = {"path": str(tmp_path / "flats.csv"), "tasks": {"rent": {}}}
    together = trained(
        tmp_path / "run", data, inner=0,
        encoder={"name": "mlp", "hidden": [8], "norm": "batch", "transductive": True},
    )  # fmt: skip
    with pytest.raises(UserError, match="normalises all rows together"):
        raymtl.predict(together, tmp_path / "flats.csv", output=tmp_path / "out")
    one = raymtl.predict(together, tmp_path / "flats.csv", output=tmp_path / "one.parquet")
    assert one.num_rows == 100
    digits = trained(tmp_path / "sines", {"name": "sinusoid"}, inner=0)
    pq.write_table(pa.table({"input": [[0.5], [1.0]]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="none of your own files"):
        raymtl.predict(digits, tmp_path / "x.parquet", output=tmp_path / "out")


def test_the_plan_names_no_value_of_the_rows(home: Path, tmp_path: Path) -> None:
    raymtl.predict(home / "run", home / "new.parquet", output=tmp_path / "out")
    plan = json.loads((tmp_path / "out" / "_predictions.json").read_text())
    assert plan["num_rows"] == ROWS and len(plan["model"]) == len(plan["files"]) == 64
