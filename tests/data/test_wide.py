"""Tables of ten thousand columns: the same findings, in seconds, on a page, and a configuration that loads at once."""

import contextlib
import gc
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pyarrow.csv import write_csv
from typer.testing import CliRunner

from raymtl.cli import app
from raymtl.cli.columns import MOST_LINES, left_out, lines
from raymtl.config import Experiment, load
from raymtl.data import Files
from raymtl.data.tables import wide
from raymtl.data.tables.column_numbers import encode_column
from raymtl.data.tables.column_roles import role_of
from raymtl.data.tables.columns import numbers as numbers_of
from raymtl.data.tables.exact_moments import moments_of
from raymtl.data.tables.findings import is_constant
from raymtl.data.tables.fitted_column import FittedColumn
from raymtl.encoders import MLPSpec
from raymtl.encoders.base import Encoder
from tests.narrowing import checked, present

N = 70
CONFIG = "data:\n  name: files\n  path: {path}\n  tasks: {{y: {{}}}}\n{more}encoder: {{name: mlp, hidden: [16]}}\nlearner: {{name: maml, inner_steps: 0}}\n"


def odd_columns() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    gaps = [None if i % 9 == 4 else float(v) for i, v in enumerate(rng.normal(size=N))]
    found: dict[str, Any] = {
        f"x{i}": rng.normal(size=N) * 10.0 ** rng.integers(-30, 30) for i in range(40)
    }
    return found | {
        "float32": rng.normal(size=N).astype(np.float32),
        "with gaps": gaps,
        "nan": [np.nan if v is None else v for v in gaps],
        "whole": rng.integers(-5, 5, N),
        "whole with gaps": pa.array([None if i % 7 == 2 else i * i for i in range(N)]),
        "uint8": rng.integers(0, 255, N).astype(np.uint8),
        "offset": 1e9 + rng.normal(size=N),
        "far": 3e15 + rng.integers(0, 5, N),
        "rows": rng.permutation(N),
        "constant": np.full(N, 3.0),
        "constant or missing": pa.array([None if i % 2 else 4 for i in range(N)]),
        "constant in training": np.where(np.arange(N) < 50, 7.0, 1.0),
        "huge": pa.array([2**60 + i * 2**50 for i in range(N)]),
        "infinite": np.where(np.arange(N) == 3, np.inf, 1.0 * np.arange(N)),
        "nothing": pa.nulls(N, pa.float64()),
        "largest": np.where(np.arange(N) % 2, 1.7e308, -1.7e308),
        "zeros": np.zeros(N),
        "flag": np.arange(N) % 2 == 0,
        "word": [f"w{i % 3}" for i in range(N)],
    }


def where(row: int) -> str:
    return f"t: row {row}"


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("numbers", [wide.NUMBERS, 5 * N])
def test_many_columns_equal_each_alone(
    chunks: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In what is found of them."""
    monkeypatch.setattr(wide, "NUMBERS", numbers)
    table = pa.table(odd_columns())
    table = pa.concat_tables(
        [table.slice(start, N // chunks + 1) for start in range(0, N, N // chunks + 1)]
    )
    train = np.arange(N) < 50
    sure = wide.numbers_without_doubt(table, table.column_names)
    assert {
        "x3",
        "float32",
        "with gaps",
        "nan",
        "whole",
        "whole with gaps",
        "uint8",
        "offset",
        "far",
    } <= sure
    assert all(role_of(table[name], 64) == ("number", "") for name in sure)
    changing = wide.changing(table, table.column_names, train)
    assert "constant in training" in sure and "constant in training" not in changing
    assert not any(
        is_constant(table[name].to_numpy().astype(float), train) for name in changing & sure
    )
    moments = wide.column_moments(table, sure, train)
    fitted: dict[str, FittedColumn] = {}
    for name in sure:
        alone = moments_of(numbers_of(table[name].filter(pa.array(train)), name, where))
        assert (moments[name].count, moments[name].mean, moments[name].std) == (
            alone.count,
            alone.mean,
            alone.std,
        ), name
        fitted[name] = FittedColumn(
            column=name, role="number", mean=alone.mean, std=alone.std or 1.0
        )
    for impute in (True, False):
        columns = [fitted[name] for name in sorted(sure)]
        out = np.zeros((N, len(columns)), np.float32)
        done = wide.encode_columns(columns, table, out, impute=impute)
        assert ("with gaps" in done) == impute and "x3" in done
        for place, column in enumerate(columns):
            if column.column in done:
                one = np.zeros((N, 1), np.float32)
                encode_column(column, table[column.column], one, where, impute=impute)
                np.testing.assert_array_equal(out[:, [place]], one)
    assert wide.complete(table, sure) == sure - {"with gaps", "nan", "whole with gaps"}


def wide_table(folder: Path, columns: int, kind: str) -> Path:
    """A Parquet file of 80 rows; the labels are classes."""
    rng = np.random.default_rng(0)
    makers: dict[str, Callable[[int], np.ndarray]] = {
        "numbers": lambda i: rng.normal(size=80),
        "gaps": lambda i: np.where(rng.random(80) < 0.1, np.nan, rng.normal(size=80)),
        "wholes": lambda i: rng.integers(0, 3, 80),
        "constants": lambda i: np.full(80, i),
        "words": lambda i: np.array(["AA", "AG", "GG"])[rng.integers(0, 3, 80)],
    }
    make = makers[kind]
    table = {f"g{i}": make(i) for i in range(columns)}
    pq.write_table(
        pa.table({**table, "x": rng.normal(size=80), "y": ["p", "q"] * 40}), folder / "t.parquet"
    )
    return folder / "t.parquet"


@contextlib.contextmanager
def cpu_s(spent: list[float]) -> Iterator[None]:
    """Appends the processor time of the block.

    Without the garbage collector, which walks what other tests have left behind.
    """
    gc.collect()
    gc.disable()
    started = time.process_time()
    try:
        yield
    finally:
        spent.append(time.process_time() - started)
        gc.enable()


def inspected(folder: Path, columns: int, kind: str, ending: str) -> tuple[str, float]:
    """What `raymtl data inspect` prints of a table of so many columns, and its processor time."""
    folder.mkdir()
    path = wide_table(folder, columns, kind)
    if ending == "csv":
        table, path = pq.read_table(path), path.with_suffix(".csv")
        write_csv(table, path)
    config = folder / "c.yaml"
    config.write_text(CONFIG.format(path=path, more="  missing_inputs: mean\n"))
    spent: list[float] = []
    with cpu_s(spent):
        done = CliRunner().invoke(app, ["data", "inspect", str(config)], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    return done.output, spent[0]


@pytest.mark.parametrize("ending", ["parquet", "csv"])
@pytest.mark.parametrize("kind", ["numbers", "gaps", "wholes", "constants"])
def test_a_thousand_columns_are_shown_on_a_page(tmp_path: Path, kind: str, ending: str) -> None:
    output, _ = inspected(tmp_path / "wide", 1_000, kind, ending)
    assert len(output.splitlines()) < 100
    assert re.search("99[67] more", output)


@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        ("gaps", "parquet"),
        *(
            pytest.param(kind, ending, marks=pytest.mark.slow)
            for kind, ending in (
                ("gaps", "csv"),
                ("numbers", "parquet"),
                ("wholes", "parquet"),
                ("constants", "parquet"),
            )
        ),
    ],
)
def test_inspection_time_is_linear_in_columns(tmp_path: Path, kind: str, ending: str) -> None:
    """At most 25 times: what looks at pairs of columns would take 100 times as long.

    Once from CSV: what is done with columns after they were read is the same for both.
    """
    inspected(tmp_path / "first", 10, kind, ending)  # what is imported on first use
    _, few_s = inspected(tmp_path / "few", 500, kind, ending)
    output, many_s = inspected(tmp_path / "many", 5_000, kind, ending)
    assert many_s < 25 * few_s, (few_s, many_s)
    assert len(output.splitlines()) < 100
    assert re.search("4,99[67] more", output)


def test_wide_configurations_load_without_data(
    tmp_path: Path,
) -> None:
    """Twenty times the columns take at most 50 times as long: what looks at pairs would take 400."""
    spent: list[float] = []
    for columns in (100, 2_000):
        path = wide_table(tmp_path, columns, "numbers")
        (tmp_path / "c.yaml").write_text(
            CONFIG.format(path=path, more="") + "search: {train.lr: {log_uniform: [0.001, 0.01]}}\n"
        )
        experiment = load(tmp_path / "c.yaml")
        experiment.save(tmp_path / "saved.yaml")
        path.unlink()  # what was found in it is in the configuration
        with cpu_s(spent):
            again = load(tmp_path / "saved.yaml")
        assert again == experiment
        assert len(present(checked(again.data, Files).found).columns) == columns + 1
        assert again.override({"train.lr": 0.002}).data is again.data  # not validated once more
    assert spent[1] < 50 * spent[0], spent


@pytest.mark.parametrize("columns", [3, 64, 65, 200])
def test_findings_survive_saving(tmp_path: Path, columns: int) -> None:
    names = ["a: b", "c, 'd'", 'e"f', "größe", " g ", "h\ni", "#j", "[k]", "- l", "null"]
    rng = np.random.default_rng(0)
    table: dict[str, Any] = {f"{names[i % 10]} {i}": rng.normal(size=60) for i in range(columns)}
    table |= {f"always {i}": ["s, 't': {u}"] * 60 for i in range(columns)}
    table |= {
        "kind": ["no", "yes", "a: b"] * 20,
        "text": [f"two words {i}" for i in range(60)],
        "y": rng.normal(size=60),
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    experiment = Experiment.model_validate(
        {
            "data": {"name": "files", "path": str(tmp_path / "t.parquet"), "tasks": {"y": {}}},
            "encoder": {"name": "mlp"},
        }
    ).resolve()
    experiment.save(tmp_path / "saved.yaml")
    again = load(tmp_path / "saved.yaml")
    assert again == experiment
    before, after = (
        present(checked(one.data, Files).fitted).left_out for one in (experiment, again)
    )
    assert before == after and len(after) == columns


def test_configurations_of_older_versions_load(tmp_path: Path) -> None:
    """They list their columns."""
    path = wide_table(tmp_path, 100, "numbers")
    (tmp_path / "c.yaml").write_text(CONFIG.format(path=path, more=""))
    experiment = load(tmp_path / "c.yaml")
    tree = experiment.model_dump(mode="json")
    assert isinstance(tree["data"]["fitted"]["columns"], str)
    assert isinstance(experiment.data, Files)
    tree["data"]["fitted"]["columns"] = [
        column.model_dump() for column in experiment.data.found.columns
    ]
    tree["data"]["fitted"]["left_out"] = dict(experiment.data.found.left_out)
    (tmp_path / "old.yaml").write_text(
        yaml.safe_dump(tree, sort_keys=False, default_flow_style=False)
    )
    (tmp_path / "t.parquet").unlink()  # nothing is found anew
    assert load(tmp_path / "old.yaml") == experiment


def test_many_alike_columns_share_a_line() -> None:
    """Few columns have a line each."""

    def column(i: int, role: str = "number", size: int = 1) -> dict[str, Any]:
        told = {
            "column": f"c{i}",
            "type": "double",
            "role": role,
            "numbers": size,
            "missing": i / 100,
            "normalised_by": f"by {i}",
        }
        return {**told, "mean": float(i), "spread": 1.0} if role == "number" else told

    few = [column(i) for i in range(MOST_LINES)]
    assert [line[0] for line in lines(few)] == [f"c{i}" for i in range(MOST_LINES)]
    many = [column(i) for i in range(50)] + [column(50, "category", 3), column(51, "category", 5)]
    assert list(lines(many)) == [
        (
            "c0, c1, c2, c3 and 46 more",
            "double",
            "number",
            "1",
            "0.0% to 49.0%",
            "means 0 to 49, spreads 1",
        ),
        ("c50, c51", "double", "category", "3 to 5", "50.0% to 51.0%", "by 50"),
    ]
    reasons = {f"c{i}": f"always '{i}'" for i in range(50)} | {"id": "the number of the row"}
    assert list(left_out(reasons)) == [
        "left out: c0, c1, c2, c3 and 46 more (always the same)",
        "left out: id (the number of the row)",
    ]


@pytest.mark.parametrize("hidden", [(5,), (7, 3)])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_linear_layers_state_their_shapes(hidden: tuple[int, ...], norm: str) -> None:
    built = MLPSpec(hidden=hidden, norm=norm).build((2, 3))
    found = Encoder(list(built.stages), (2, 3))
    assert (built.shapes, built.out_features) == (found.shapes, found.out_features)
