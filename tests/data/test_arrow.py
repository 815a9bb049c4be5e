"""Arrow files and streams, as Feather and Hugging Face write them, read as the same table in Parquet is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from raymtl.data import Files
from raymtl.types import UserError

ROWS, BATCH = 90, 20
CLASSES = ["cat", "dog", "owl"]


def table(with_labels: bool = True) -> pa.Table:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 3, ROWS)
    numbers[::9] = -1
    label: Any = pa.array(numbers)
    if not with_labels:
        label = pa.array([None if n < 0 else CLASSES[n] for n in numbers.tolist()])
    return pa.table(
        {
            "x": rng.normal(size=ROWS),
            "vector": pa.array(rng.normal(size=(ROWS, 2)).tolist()),
            "y": rng.normal(size=ROWS),
            "label": label,
        }
    )


def features() -> dict[bytes, bytes]:
    about = {
        "info": {
            "features": {
                "label": {"_type": "ClassLabel", "names": CLASSES},
                "x": {"_type": "Value"},
            }
        }
    }
    return {b"huggingface": json.dumps(about).encode()}  # fmt: skip


def write_stream(path: Path, rows: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=BATCH)


def arrays(path: Path, **values: Any) -> dict[str, np.ndarray]:
    tasks = {"y": {}, "label": {"kind": "classification"}}
    return Files(path=str(path), tasks=tasks, shots=2, queries=3, **values).resolve().load()


@pytest.fixture
def wanted(tmp_path: Path) -> dict[str, np.ndarray]:
    pq.write_table(table(with_labels=False), tmp_path / "t.parquet", row_group_size=BATCH)
    return arrays(tmp_path / "t.parquet")


def check_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for key, values in wanted.items():
        if key.startswith(("inputs", "target", "mask", "rows")):
            np.testing.assert_array_equal(found[key], values, err_msg=key)


def test_a_hugging_face_folder_equals_parquet(
    tmp_path: Path, wanted: dict[str, np.ndarray]
) -> None:
    folder = tmp_path / "saved"
    write_stream(folder / "data-00000-of-00001.arrow", table().replace_schema_metadata(features()))
    (folder / "state.json").write_text("{}")
    write_stream(folder / "cache-0123.arrow", table().slice(0, 5))
    found = arrays(folder)
    check_same(found, wanted)


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_feather_equals_parquet(
    tmp_path: Path, wanted: dict[str, np.ndarray], compression: str
) -> None:
    path = tmp_path / "t.feather"
    pyarrow.feather.write_feather(
        table(with_labels=False), str(path), compression=compression, chunksize=BATCH
    )
    check_same(arrays(path), wanted)


def test_dictionaries_of_a_stream_are_read(tmp_path: Path, wanted: dict[str, np.ndarray]) -> None:
    rows = table(with_labels=False)
    at = rows.column_names.index("label")
    rows = rows.set_column(at, "label", rows["label"].dictionary_encode())
    write_stream(tmp_path / "t.arrow", rows)
    check_same(arrays(tmp_path / "t.arrow"), wanted)


def test_splits_are_the_folders_of_hugging_face(tmp_path: Path) -> None:
    for name, start in (("train", 0), ("validation", 30), ("test", 60)):
        write_stream(tmp_path / name / "data.arrow", table(with_labels=False).slice(start, 30))
    found = arrays(tmp_path)
    assert [len(found[f"rows/{split}"]) for split in ("train", "val", "test")] == [30, 30, 30]


def test_streams_are_drawn_batch_by_batch(tmp_path: Path) -> None:
    """A file that is too large for memory is read one batch at a time, in any order."""
    write_stream(tmp_path / "t.arrow", table(with_labels=False))
    source = Files(
        path=str(tmp_path / "t.arrow"), tasks={"y": {}}, shots=2, queries=3, in_memory_mb=0.0025,
        hold_steps=1, fit_rows=20, held_out_rows=10,
    ).resolve()  # fmt: skip
    assert source.found.pool is not None
    loaded = source.load()
    seen = [source.window(loaded, "train", 0, step)["0/inputs"] for step in range(6)]
    assert len({one.tobytes() for one in seen}) > 1
    assert all(len(one) <= BATCH for one in seen)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.arrow").write_bytes(b"no arrow at all, but some bytes")
    with pytest.raises(UserError, match=r"t\.arrow: expected an Arrow file, got something else"):
        arrays(tmp_path / "t.arrow")
    write_stream(tmp_path / "cut.arrow", table())
    whole = (tmp_path / "cut.arrow").read_bytes()
    (tmp_path / "cut.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.arrow: expected an Arrow file"):
        arrays(tmp_path / "cut.arrow")
