"""Columns of every type that Parquet stores, and parts whose types differ: the right value, or one sentence."""

import datetime
import decimal
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raymtl.data import Files
from raymtl.types import UserError

N = 60
X = np.random.default_rng(0).normal(size=N)
DATES = [datetime.date(2020, 1, 1) + datetime.timedelta(days=i * 3) for i in range(N)]
MOMENTS = [datetime.datetime(2020, 1, 1) + datetime.timedelta(hours=i * 5) for i in range(N)]
WORDS = [f"w{i % 4}" for i in range(N)]


def source(folder: Path, columns: dict[str, Any], **values: Any) -> Files:
    table = pa.table({**columns, **({} if "y" in columns else {"y": pa.array(X * 2)})})
    pq.write_table(table, folder / "t.parquet", row_group_size=25)
    tasks = {"y": {}} if "y" in columns else {"y": {"kind": "regression"}}
    return Files.model_validate(
        {"path": str(folder / "t.parquet"), "tasks": tasks, **values}
    ).resolve()


def shown(found: Files) -> np.ndarray:
    """The one input in its own unit, in the order of the rows."""
    (column,) = found.found.columns
    values: np.ndarray = found.load()["inputs"][:, 0].astype(float) * column.std + column.mean
    return values


days = [(day - datetime.date(1970, 1, 1)).days for day in DATES]
hours = [(moment - datetime.datetime(1970, 1, 1)).total_seconds() / 86400 for moment in MOMENTS]
NUMBERS: dict[str, tuple[pa.Array, Sequence[float]]] = {
    "float16": (pa.array(X.astype(np.float16)), X.astype(np.float16).tolist()),
    "float32": (pa.array(X.astype(np.float32)), X.tolist()),
    "decimal32": (pa.array([decimal.Decimal(f"{x:.2f}") for x in X], pa.decimal32(6, 2)), X.round(2).tolist()),
    "decimal128": (pa.array([decimal.Decimal(f"{x:.2f}") for x in X], pa.decimal128(10, 2)), X.round(2).tolist()),
    "decimal256": (pa.array([decimal.Decimal(f"{x:.2f}") for x in X], pa.decimal256(50, 2)), X.round(2).tolist()),
    "date32": (pa.array(DATES), days),
    "date64": (pa.array(DATES).cast(pa.date64()), days),
    "timestamp": (pa.array(MOMENTS, pa.timestamp("ns")), hours),
    "timestamp with a zone": (pa.array(MOMENTS, pa.timestamp("us", "Europe/Berlin")), hours),
    "time32": (pa.array([datetime.time(i % 24, i) for i in range(N)], pa.time32("s")), [i % 24 * 3600 + i * 60 for i in range(N)]),
    "time64": (pa.array([datetime.time(i % 24, i) for i in range(N)], pa.time64("ns")), [i % 24 * 3600 + i * 60 for i in range(N)]),
    "duration": (pa.array([datetime.timedelta(seconds=i * i) for i in range(N)], pa.duration("ns")), [float(i * i) for i in range(N)]),
    "uint8": (pa.array([i * i % 200 for i in range(N)], pa.uint8()), [i * i % 200 for i in range(N)]),
    "dictionary of numbers": (pa.array([i * i for i in range(N)]).dictionary_encode(), [i * i for i in range(N)]),
}  # fmt: skip


@pytest.mark.parametrize("kind", NUMBERS)
def test_every_number_type_is_a_number(tmp_path: Path, kind: str) -> None:
    array, values = NUMBERS[kind]
    found = source(tmp_path, {"x": array})
    assert found.found.columns[0].role == "number"
    np.testing.assert_allclose(shown(found), values, rtol=1e-4, atol=1e-3 * float(np.std(values)))


@pytest.mark.parametrize(
    ("kind", "start", "step"),
    [
        (pa.int64(), 1_700_000_000_123_456_789, 987_654_321),
        (pa.int64(), -(2**62), 2**55 + 1),
        (pa.uint64(), 2**63 + 1, 2**56 + 1),
        (pa.decimal128(25, 0), 10**20, 10**18 + 1),
    ],
)
def test_whole_numbers_beyond_2_53_are_numbers(
    tmp_path: Path, kind: pa.DataType | pa.Decimal128Type, start: int, step: int
) -> None:
    values = [start + (i * 7 % N) * step for i in range(N)]
    found = source(tmp_path, {"x": pa.array(values, kind)})
    assert found.found.columns[0].role == "number"
    exact = (np.arange(N) * 7 % N).astype(float)
    got = found.load()["inputs"][:, 0].astype(float)
    np.testing.assert_allclose(
        got, (got.mean() + (exact - exact.mean()) / exact.std() * got.std()), atol=1e-5
    )
    assert (
        source(tmp_path, {"x": pa.array(values, kind), "y": pa.array(values, kind)})
        .found.tasks["y"]
        .kind
        == "regression"
    )


def test_keys_beyond_2_53_are_omitted(
    tmp_path: Path,
) -> None:
    """It is told that floats do not tell them apart."""
    keys = pa.array([2**60 + i * 13 % 97 for i in range(N)])
    found = source(tmp_path, {"x": pa.array(X), "key": keys}).found
    assert "differ less than 64-bit floats are exact" in found.left_out["key"]
    with pytest.raises(
        UserError, match=r"t.parquet: column 'y': expected numbers that 64-bit floats tell apart"
    ):
        source(tmp_path, {"x": pa.array(X), "y": keys})


@pytest.mark.parametrize(
    "kind",
    ["string_view", "large_string", "dictionary", "binary", "large_binary", "binary_view", "fixed"],
)
def test_texts_of_any_type_are_texts(tmp_path: Path, kind: str) -> None:
    types = {
        "string_view": pa.string_view(),
        "large_string": pa.large_string(),
        "dictionary": pa.dictionary(pa.int8(), pa.string()),
    }
    types |= {
        "binary": pa.binary(),
        "large_binary": pa.large_binary(),
        "binary_view": pa.binary_view(),
        "fixed": pa.binary(2),
    }
    words = (
        [w.encode() for w in WORDS]
        if kind in ("binary", "large_binary", "binary_view", "fixed")
        else WORDS
    )
    found = source(
        tmp_path,
        {"x": pa.array(X), "c": pa.array(words, types[kind]), "y": pa.array(words, types[kind])},
    )
    assert found.found.columns[1].categories == ("w0", "w1", "w2", "w3")
    assert found.found.tasks["y"].classes == ("w0", "w1", "w2", "w3")
    assert found.load()["target/y"].tolist() == [i % 4 for i in range(N)]


def test_bytes_follow_the_given_encoding(tmp_path: Path) -> None:
    words = pa.array(["Zürich", "Genève"] * 30).cast(pa.string()).to_pylist()
    columns = {"x": pa.array(X), "c": pa.array([w.encode("latin1") for w in words])}
    assert "neither pictures nor texts" in source(tmp_path, columns).found.left_out["c"]
    assert source(tmp_path, columns, encoding="latin1").found.columns[1].categories == (
        "Genève",
        "Zürich",
    )
    mixed = pa.array([b"plain"] * 55 + ["Genève".encode("latin1")] * 5)
    with pytest.raises(
        UserError, match=r"t.parquet: column 'c': expected string .* set data.encoding"
    ):
        source(tmp_path, {"x": pa.array(X), "c": mixed})


def test_undecodable_bytes_are_omitted_or_told(tmp_path: Path) -> None:
    raw = pa.array([bytes([200, i, 255]) for i in range(N)])
    found = source(tmp_path, {"x": pa.array(X), "raw": raw}).found
    assert found.left_out == {"raw": "bytes that are neither pictures nor texts"}
    with pytest.raises(
        UserError,
        match=r"data.inputs: .*column 'raw': expected values to learn from, got bytes that",
    ):
        source(tmp_path, {"x": pa.array(X), "raw": raw}, inputs=["raw"])
    with pytest.raises(
        UserError,
        match=r"data.tasks.y: .*column 'y': expected labels .* got bytes that are no texts",
    ):
        source(tmp_path, {"x": pa.array(X), "y": raw})


def test_bytes_of_pictures_stay_pictures_whatever_their_type(tmp_path: Path) -> None:
    def png(i: int) -> bytes:
        content = io.BytesIO()
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(content, "PNG" if i % 2 else "PPM")
        return content.getvalue()

    for kind in (
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    ):
        values = [
            {"bytes": png(i), "path": None} if pa.types.is_struct(kind) else png(i)
            for i in range(N)
        ]
        found = source(tmp_path, {"picture": pa.array(values, kind)}, size=8)
        assert found.is_image and found.load()["inputs"][7, 0, 0, 0] == 7


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float16()),
        pa.large_list(pa.float32()),
        pa.list_(pa.float16(), 3),
        pa.list_view(pa.float64()),
        pa.list_(pa.int64()),
    ],
)
def test_lists_of_numbers_of_any_type_are_vectors(tmp_path: Path, kind: Any) -> None:
    rows = [[np.float16(i % 7), np.float16(1), np.float16(-i % 5)] for i in range(N)]
    found = source(
        tmp_path,
        {
            "x": pa.array(
                rows if kind.value_type == pa.float16() else [[int(v) for v in r] for r in rows],
                kind,
            )
        },
    )
    assert (found.found.columns[0].role, found.found.columns[0].size) == ("vector", 3)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (pa.array([{"a": 1}] * N), "struct<a: int64>, which is no number"),
        (
            pa.array([[("k", 1)]] * N, pa.map_(pa.string(), pa.int64())),
            "map<string, int64.*, which is no number",
        ),
        (pa.nulls(N), "no values"),
        (pa.array([[["a"]]] * N), "no numbers"),
        (pa.array([{"a": {"b": b"c"}}] * N), "struct"),
    ],
)
def test_types_unfit_as_inputs_are_omitted(tmp_path: Path, values: Any, why: str) -> None:
    """With the reason."""
    assert re.search(why, source(tmp_path, {"x": pa.array(X), "z": values}).found.left_out["z"])
    with pytest.raises(UserError, match=r"data.tasks.y: .*column 'y': expected labels"):
        source(tmp_path, {"x": pa.array(X), "y": values})


def test_rare_arrow_types_are_read(tmp_path: Path) -> None:
    """bool8, uuid and runs are read as what they hold."""
    flags = pa.ExtensionArray.from_storage(
        pa.bool8(), pa.array([i % 2 for i in range(N)], pa.int8())
    )
    found = source(tmp_path, {"x": pa.array(X), "y": flags}).found
    assert found.tasks["y"].kind == "binary" and found.tasks["y"].classes == ("false", "true")


def parts(folder: Path, one: dict[str, Any], other: dict[str, Any], **values: Any) -> Files:
    (folder / "d").mkdir(exist_ok=True)
    for number, content in enumerate((one, other)):
        pq.write_table(pa.table({"x": X + number, **content}), folder / "d" / f"{number}.parquet")
    return Files.model_validate({"path": str(folder / "d"), "tasks": {"y": {}}, **values}).resolve()


def test_number_and_text_labels_agree(
    tmp_path: Path,
) -> None:
    """Numbers in one part and texts in another are the same classes."""
    numbers, as_texts = [i % 3 for i in range(N)], [str(i % 3) for i in range(N)]
    for one, other in (
        (numbers, as_texts),
        (as_texts, numbers),
        ([float(n) for n in numbers], as_texts),
    ):
        found = parts(tmp_path, {"y": pa.array(one)}, {"y": pa.array(other)})
        assert found.found.tasks["y"].kind == "classification" and found.found.tasks[
            "y"
        ].classes == ("0", "1", "2")
        assert found.load()["target/y"].tolist() == numbers * 2


def test_number_and_word_classes_are_joined(
    tmp_path: Path,
) -> None:
    found = parts(
        tmp_path, {"y": pa.array([i % 2 for i in range(N)])}, {"y": pa.array(["a", "1"] * 30)}
    )
    assert found.found.tasks["y"].classes == ("0", "1", "a")


def test_inputs_may_be_numbers_and_texts(tmp_path: Path) -> None:
    """In different parts."""
    y = pa.array(X * 2)
    found = parts(
        tmp_path, {"y": y, "c": pa.array(X)}, {"y": y, "c": pa.array([f" {x} " for x in X])}
    )
    assert found.found.columns[1].role == "number"
    one, other = np.split(found.load()["inputs"][:, 1], 2)
    np.testing.assert_array_equal(one, other)
    codes = {"y": y, "c": pa.array([f"0{i % 4}067" for i in range(N)])}
    found = parts(tmp_path, {"y": y, "c": pa.array([1067 + i % 4 for i in range(N)])}, codes)
    assert (
        found.found.columns[1].role == "category" and "01067" in found.found.columns[1].categories
    )
    words = {"y": y, "c": pa.array(WORDS)}
    with pytest.raises(
        UserError, match=r"1.parquet: column 'c': expected double as in .*0.parquet, got string"
    ):
        parts(tmp_path, {"y": y, "c": pa.array(X)}, words)
    numbers = {"y": y, "c": pa.array([i % 3 for i in range(N)])}
    assert parts(tmp_path, numbers, words, exclude=["c"]).found.columns[0].column == "x"
    found = parts(tmp_path, numbers, words, inputs={"c": "category"})
    assert set(found.found.columns[0].categories) > {"0", "1", "2", "w0"}


ALIKE: list[tuple[pa.Array, pa.Array, str]] = [
    (pa.array(WORDS).dictionary_encode(), pa.array(WORDS), "category"),
    (pa.array(WORDS, pa.large_string()), pa.array(WORDS, pa.string_view()), "category"),
    (pa.array(WORDS), pa.array([w.encode() for w in WORDS]), "category"),
    (pa.array([i * i for i in range(N)], pa.int8() if N < 11 else pa.int16()), pa.array([float(i * i) for i in range(N)]), "number"),
    (pa.array([i * i for i in range(N)]), pa.array([i * i for i in range(N)], pa.uint64()), "number"),
    (pa.array(DATES), pa.array(DATES).cast(pa.timestamp("ms")), "number"),
    (pa.array(MOMENTS, pa.timestamp("us")), pa.array(MOMENTS, pa.timestamp("ms", "UTC")), "number"),
    (pa.array(X), pa.array([decimal.Decimal(f"{x:.9f}") for x in X]), "number"),
    (pa.array(X.astype(np.float16)), pa.array(X.astype(np.float16).astype(float)), "number"),
    (pa.array([[1.0, x] for x in X]), pa.array([[1.0, x] for x in X], pa.list_(pa.float64(), 2)), "vector"),
]  # fmt: skip


@pytest.mark.parametrize("one, other, role", ALIKE)
def test_parts_of_other_types_join(tmp_path: Path, one: Any, other: Any, role: str) -> None:
    """They store the same values."""
    y = pa.array(X * 2)
    for first, second in ((one, other), (other, one)):
        found = parts(tmp_path, {"y": y, "c": first}, {"y": y, "c": second})
        assert found.found.columns[1].role == role
        before, after = np.split(found.load()["inputs"][:, 1:], 2)
        np.testing.assert_allclose(before, after, atol=1e-5)


def test_empty_parts_take_the_others_type(tmp_path: Path) -> None:
    y = pa.array(X * 2)
    found = parts(tmp_path, {"y": y, "c": pa.nulls(N)}, {"y": y, "c": pa.array(WORDS)})
    assert found.found.columns[1].categories == ("w0", "w1", "w2", "w3")


def test_text_parts_are_read_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for number, words in enumerate((["True", "False"], ["True", "maybe"])):
        lines = "".join(f"{x},{words[i % 2]},{2 * x}\n" for i, x in enumerate(X))
        (tmp_path / "d" / f"{number}.csv").write_text("x,c,y\n" + lines)
    found = Files.model_validate({"path": str(tmp_path / "d"), "tasks": {"y": {}}}).resolve().found
    assert found.columns[1].categories == ("False", "True", "maybe")
    found = (
        Files.model_validate({"path": str(tmp_path / "d"), "tasks": {"c": {}}, "exclude": ["y"]})
        .resolve()
        .found
    )
    assert found.tasks["c"].classes == ("False", "True", "maybe")


def test_huge_whole_numbers_in_text_stay_apart(tmp_path: Path) -> None:
    labels = [10**20 + i % 3 for i in range(N)]
    (tmp_path / "t.csv").write_text(
        "x,y\n" + "".join(f"{x},{y}\n" for x, y in zip(X, labels, strict=True))
    )
    found = Files(path=str(tmp_path / "t.csv"), tasks={"y": {}}).resolve()
    assert found.found.tasks["y"].classes == tuple(str(10**20 + i) for i in range(3))
    assert found.load()["target/y"].tolist() == [i % 3 for i in range(N)]


def test_splits_ignore_types_of_parts(
    tmp_path: Path,
) -> None:
    """So do the statistics."""
    y = pa.array(X * 2)
    found = parts(
        tmp_path,
        {"y": y, "c": pa.array(range(N))},
        {"y": y, "c": pa.array([str(i) for i in range(N)])},
    )
    arrays = found.load()
    train = arrays["inputs"][arrays["side"] == 0]
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(0), 1, atol=1e-4)
