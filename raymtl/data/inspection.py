"""What a source holds, before anything is trained on it: columns, tasks, splits, an episode."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from raymtl.data.base import SPLITS, Arrays, Source
from raymtl.data.episodes import build_episodes
from raymtl.data.prepared.source import files_of
from raymtl.data.tables import Files, FittedColumn

if TYPE_CHECKING:
    import pyarrow as pa


def inspect(source: Source, seed: int) -> tuple[dict[str, Any], Arrays]:
    """A report of shapes, tasks and splits, and of files all that was found in them; and the
    loaded arrays.

    `notes` says what was decided for the user. Raises UserError for what cannot be learned from.
    """
    source = source.resolve()
    arrays = source.load()
    report: dict[str, Any] = {
        "input_shape": list(source.input_shape),
        "pictures": source.is_image,
        "tasks": {
            task.name: {"kind": task.kind.name, "metrics": list(task.metrics)}
            for task in source.make_tasks()
        },
        "labelled_for_training": dict(source.sizes(arrays)),
        "notes": [note.model_dump() for note in source.notes(arrays)],
    }
    files = files_of(source)
    if files is not None:
        report |= _of_files(files, arrays)
        report["columns"] = _columns(files, source)
    (stack, *_), domains = build_episodes(
        source, arrays, seed=seed, split="train", step=0, indices=[0]
    )
    report["episode"] = {
        "domain": domains[0],
        "support": {name: len(target[0]) for name, target in stack.support.targets.items()},
        "query": {name: len(target[0]) for name, target in stack.query.targets.items()},
    }
    return report, arrays


def _of_files(source: Files, arrays: Arrays) -> dict[str, Any]:
    """The columns, tasks and splits of a user's files."""
    found = source.found
    splits = arrays["side"]
    report: dict[str, Any] = {
        "format": found.format,
        "rows": found.rows,
        "streamed": found.pool is not None,
        "split_by": found.split_by,
        "splits": {split: int((splits == number).sum()) for number, split in enumerate(SPLITS)},
        "left_out": dict(found.left_out),
        "tasks": {name: _task(source, arrays, name) for name in source.task_names},
    }
    if source.episodes != "rows":
        report[source.episodes] = {split: len(arrays[f"names/{split}"]) for split in SPLITS}
    return report


class _StoredColumn(NamedTuple):
    """The type of a column in the files, and the share of its values that are missing."""

    value_type: str
    missing: float


def _stored_columns(files: Files) -> dict[str, _StoredColumn]:
    """The columns of the inputs as they are in the user's files."""
    from raymtl.data.tables.dataset import TableDataset

    dataset = TableDataset(files)
    if files.found.pool is None:
        blocks: Sequence[int] = range(len(dataset.blocks))
    else:
        blocks = [0]
    rows, _ = dataset.together(blocks)
    stored = {}
    for column in files.found.columns:
        values = rows.table[column.column]
        missing = values.null_count / len(values)
        stored[column.column] = _StoredColumn(str(_value_type(values.type)), missing)
    return stored


def _columns(files: Files, source: Source) -> list[dict[str, Any]]:
    """The inputs; those of prepared data are numbers already, and the files need not be there."""
    stored: dict[str, _StoredColumn] = {}
    if isinstance(source, Files):
        stored = _stored_columns(files)
    columns = []
    for column in files.found.columns:
        of_column = stored.get(column.column, _StoredColumn("prepared", 0.0))
        numbers = column.size
        if column.role == "picture":
            numbers = math.prod(files.input_shape)
        about = {
            "column": column.column,
            "type": of_column.value_type,
            "role": column.role,
            "numbers": numbers,
            "missing": of_column.missing,
            "normalised_by": _normalised(column),
        }
        if column.role in ("number", "vector"):
            about |= {"mean": column.mean, "spread": column.std}
        columns.append(about)
    return columns


def _task(source: Files, arrays: Arrays, name: str) -> dict[str, Any]:
    from raymtl.data.tables.column_names import label_columns

    fitted = source.found.tasks[name]
    kind = fitted.task_kind
    splits = {}
    for number, split in enumerate(SPLITS):
        labelled = arrays[f"mask/{name}"] & (arrays["side"] == number)
        balance: Mapping[str, float] = {}
        if f"target/{name}" in arrays:  # maps of data that do not fit into memory are not there
            balance = kind.summarise(arrays[f"target/{name}"][labelled], fitted.classes)
        splits[split] = {"labelled": int(labelled.sum()), "balance": balance}
    return {
        "columns": list(label_columns(name, fitted.asked)),
        "kind": fitted.kind,
        "inferred": fitted.inferred,
        "yes": kind.positive_class(fitted.classes),
        "missing": 1 - fitted.labelled,
        "splits": splits,
    }


def _value_type(stored: "pa.DataType") -> "pa.DataType":
    """Without the dictionary that values were stored by."""
    if str(stored).startswith("dictionary"):
        return getattr(stored, "value_type", stored)
    return stored


def _normalised(column: FittedColumn) -> str:
    if column.role in ("number", "vector"):
        return f"mean {column.mean:.4g}, spread {column.std:.4g}"
    if column.role == "category":
        listed = ", ".join(column.categories[:6])
        if len(column.categories) > 6:
            listed += " ..."
        return f"one of {listed}, or another"
    if column.encoder is not None and not column.encoder.frozen:
        return f"tokens of {column.encoder.model}"
    if column.encoder is not None:
        return f"vector of {column.encoder.model}, mean {column.mean:.4g}, spread {column.std:.4g}"
    if column.is_sparse:
        return f"TF-IDF in {column.num_places} places"
    return "0 to 1"
