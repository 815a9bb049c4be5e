"""Classes and statistics of files larger than memory, added up block by block."""

import os
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from raymtl.data import Files
from raymtl.data.prepared.manifest import ShardEntry
from raymtl.data.prepared.plan import Job, ShardPlan
from raymtl.data.prepared.prepare import prepare
from raymtl.data.tables.fit_blocks import fit_all_rows, in_this_process
from raymtl.data.tables.statistics import Statistics
from raymtl.types import UserError
from tests.data.texts import sentences
from tests.narrowing import present

ROWS, GROUP = 1500, 100
LABELS = {
    "y": {},
    "word": {"class_weights": "balanced"},
    "tags": {"kind": "multilabel", "class_weights": "balanced"},
    "flags": {"columns": ["a", "b"], "class_weights": "balanced"},
    "marks": {"columns": ["a", "b"], "pos_weight": "balanced"},
    "two": {"columns": ["y", "x0"], "kind": "regression"},
}


def write(path: Path, more: dict[str, object] | None = None) -> None:
    """Rows of every role and kind of label, some of them missing; a class is in two rows alone."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, ROWS)) * [[1.0], [1e6], [1e-3]]
    words = rng.choice(["p", "q"], ROWS).astype(object)
    words[[17, 1400]] = "rare"
    columns: dict[str, object] = {f"x{i}": own for i, own in enumerate(x)}
    columns |= {
        "sometimes": pa.array([None if i % 7 == 0 else float(i) for i in range(ROWS)]),
        "kind": rng.choice(["u", "v", "w"], ROWS),
        "when": pa.array(np.arange(ROWS) * 86_400_000, pa.timestamp("ms")),
        "vector": pa.array(list(rng.normal(size=(ROWS, 3))), pa.list_(pa.float64())),
        "note": sentences(ROWS),
        "y": pa.array([None if i % 5 == 0 else float(i % 11) for i in range(ROWS)]),
        "word": words,
        "tags": rng.choice(["s;t", "s", "t;z", ""], ROWS),
        "a": rng.choice(["yes", "no"], ROWS),
        "b": pa.array([None if i % 3 == 0 else i % 2 for i in range(ROWS)]),
        **(more or {}),
    }
    pq.write_table(pa.table(columns), path, row_group_size=GROUP)


def large(path: Path, fit_rows: int = 500) -> Files:
    return Files.model_validate(
        {
            "path": str(path),
            "exclude": ["x0"],
            "tasks": LABELS,
            "missing_inputs": "mean",
            "text_size": 32,
            "text_terms": 8,
            "in_memory_mb": 0.05,
            "fit_rows": fit_rows,
        }
    ).resolve()


def test_blocks_add_up_to_the_statistics_of_all_rows(tmp_path: Path) -> None:
    """To the bit, in any order and shares, also as JSON; all rows together are the oracle."""
    write(tmp_path / "t.parquet")
    together = large(tmp_path / "t.parquet", fit_rows=ROWS)
    source = large(tmp_path / "t.parquet")
    expected = together.found
    assert present(source.found.pool) and source.found.columns != expected.columns
    as_json = TypeAdapter(Statistics)
    for seed in range(3):

        def in_shares(
            source: Files, numbers: Sequence[int], seed: int = seed
        ) -> Iterator[Statistics]:
            rng = np.random.default_rng(seed)
            for share in np.array_split(rng.permutation(numbers), 4):
                sums = reduce(add, in_this_process(source, share.tolist()))
                yield as_json.validate_json(as_json.dump_json(sums))

        found = fit_all_rows(source, in_shares).found
        assert found.columns == expected.columns
        assert found.tasks == expected.tasks
        assert (found.input_shape, found.pool) == (expected.input_shape, expected.pool)


def test_notes_say_which_rows_were_counted(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet")
    source = large(tmp_path / "t.parquet")
    (note,) = [note for note in source.found.notes if note.key == "data.fit_rows"]
    assert "of 500 of 1,500 rows" in note.text
    found = fit_all_rows(source).found
    assert not [note for note in found.notes if note.key == "data.fit_rows"]
    assert "are of all 1,500 rows" in found.notes[-1].text


def test_rare_classes_are_found(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet")
    source = large(tmp_path / "t.parquet", fit_rows=100)
    assert "rare" not in source.found.tasks["word"].classes
    assert "rare" in fit_all_rows(source).found.tasks["word"].classes


def test_an_interrupted_preparation_adds_up_once(tmp_path: Path) -> None:
    """Unless a file has changed since; and what was found is what the shards are made by."""
    write(tmp_path / "t.parquet")
    source = large(tmp_path / "t.parquet")
    calls: list[int] = []

    def counted(source: Files, numbers: Sequence[int]) -> Iterator[Statistics]:
        calls.append(len(numbers))
        return in_this_process(source, numbers)

    def interrupted(job: Job, shards: Sequence[ShardPlan]) -> Iterator[ShardEntry]:
        raise InterruptedError

    for _ in range(2):
        with pytest.raises(InterruptedError):
            prepare(source, str(tmp_path / "out"), driver=interrupted, sum_blocks=counted)
    manifest = prepare(source, str(tmp_path / "out"), sum_blocks=counted)
    assert calls == [ROWS // GROUP]
    assert manifest.files.found == fit_all_rows(source).found
    assert not list((tmp_path / "out").glob(".*"))
    os.utime(tmp_path / "t.parquet", (1, 1))
    with pytest.raises(UserError, match="changed since"):
        prepare(source, str(tmp_path / "out"), sum_blocks=counted)
    assert len(calls) == 2


def test_files_in_memory_are_not_read_again(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet")
    path = str(tmp_path / "t.parquet")
    source = Files(path=path, tasks={"y": {}}, missing_inputs="mean").resolve()

    def never(source: Files, numbers: Sequence[int]) -> Iterator[Statistics]:
        raise AssertionError

    assert fit_all_rows(source, never) is source


def test_a_mistake_beyond_the_sample_names_its_row(tmp_path: Path) -> None:
    values = [[0.0, 1.0]] * (ROWS - 5) + [[0.0]] * 5  # not all of them are for testing
    write(tmp_path / "t.parquet", {"vector": pa.array(values)})
    source = large(tmp_path / "t.parquet", fit_rows=100)
    with pytest.raises(UserError, match=r"t\.parquet: row 149[5-9], column 'vector': expected 2"):
        fit_all_rows(source)
