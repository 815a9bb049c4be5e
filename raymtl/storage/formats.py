"""The formats of a run folder's files: JSON, rows as Parquet, tensors as safetensors."""

import json
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file
from torch import Tensor

from raymtl.storage import atomic, strict_json
from raymtl.types import Params, UserError

Publish = Callable[[Path, Callable[[Path], Any]], None]
"""`storage.publish`, or that of an attempt (fence.py)."""


def write_json(path: Path, content: Mapping[str, Any], publish: Publish = atomic.publish) -> None:
    """Publishes `content` as indented JSON."""
    publish(path, lambda aside: aside.write_text(strict_json.dumps(content, indent=2) + "\n"))


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file. Raises UserError if it is missing or not JSON."""
    try:
        content: dict[str, Any] = json.loads(atomic.patiently(path, path.read_text))
        return content
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; the run has not come so far. Continue it with --resume."
        ) from None
    except ValueError as error:
        raise UserError(
            f"{path}: expected JSON, got something else ({error}). The file is damaged."
        ) from None


def append_row(path: Path, content: Mapping[str, Any], publish: Publish = atomic.publish) -> None:
    """Appends a line of JSON, with the time and the host, to a short file."""
    line = strict_json.dumps({"time": now(), "host": socket.gethostname(), **content}) + "\n"
    if path.exists():
        before = atomic.patiently(path, path.read_bytes)
    else:
        before = b""
    before = before[
        : before.rfind(b"\n") + 1
    ]  # half a line, as a power cut may leave it, is no line
    publish(path, lambda aside: aside.write_bytes(before + line.encode()))


def write_rows(path: Path, rows: list[dict[str, Any]], publish: Publish = atomic.publish) -> None:
    """Publishes rows as Parquet. A row without some column has null there."""
    write_table(path, table_of(rows), publish)


def table_of(rows: list[dict[str, Any]], before: pa.Table | None = None) -> pa.Table:
    """The rows as a table, after those of the table `before`. A row without some column has null
    there.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = pa.table({key: pa.array([row.get(key) for row in rows]) for key in columns})
    if before is None:
        return table
    return pa.concat_tables([before, table], promote_options="permissive").combine_chunks()


def write_table(path: Path, table: pa.Table, publish: Publish = atomic.publish) -> None:
    """Publishes a table as Parquet."""
    publish(path, lambda aside: pq.write_table(table, aside))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file; empty if the file does not exist."""
    rows: list[dict[str, Any]] = read_table(path).to_pylist()
    return rows


def read_table(path: Path) -> pa.Table:
    """The table of a Parquet file; empty if the file does not exist."""
    if not path.exists():
        return pa.table({})
    try:
        return atomic.patiently(path, lambda: _read_table(path))
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: expected a Parquet file, got something else ({error}). It is damaged."
        ) from None


def _read_table(path: Path) -> pa.Table:
    # Opened once: given a path, Arrow opens the file again for its pages, and it may be another.
    with pa.OSFile(str(path)) as file:
        return pq.read_table(file)


def save_params(path: Path, params: Params, publish: Publish = atomic.publish) -> None:
    """Publishes tensors as safetensors."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in params.items()}
    publish(path, lambda aside: save_file(tensors, aside))


def load_params(path: Path, expected: Params | None = None) -> dict[str, Tensor]:
    """Tensors by name. Raises UserError for a missing or damaged file, or names and shapes other
    than `expected`.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; the run has no trained model yet. Continue it with --resume."
        )
    try:
        # Copies, for what is read is aligned as the file is, and products of it may differ in their
        # last bit.
        read = atomic.patiently(path, lambda: load_file(path))
        params = {name: value.clone() for name, value in read.items()}
    except Exception as error:  # safetensors raises its own kinds, and OSError for a truncated file
        raise UserError(
            f"{path}: expected safetensors, got a damaged file ({error}). Restore or train again."
        ) from None
    for name, value in params.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"{path}: {name}: expected finite numbers, got others. The model diverged; train "
                "it again."
            )
    if expected is None:
        return params
    return as_expected(path, params, expected)


def as_expected(path: Path, params: Params, expected: Params) -> dict[str, Tensor]:
    """The tensors that were read from `path`, checked. Raises UserError unless their names and
    shapes are those of `expected`.
    """
    params = {
        name: value.to(expected[name].dtype) if name in expected else value
        for name, value in params.items()
    }
    shapes = {name: tuple(value.shape) for name, value in params.items()}
    wanted = {name: tuple(value.shape) for name, value in expected.items()}
    if shapes != wanted:
        name = next(n for n in sorted({*shapes, *wanted}) if shapes.get(n) != wanted.get(n))
        raise UserError(
            f"{path}: {name}: expected shape {wanted.get(name)}, got {shapes.get(name)}. "
            "The file belongs to another configuration than the config.yaml beside it."
        )
    # In the order in which they were made: sums over parameters round by it.
    return {name: params[name] for name in expected}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
