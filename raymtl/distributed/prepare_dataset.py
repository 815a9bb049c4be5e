"""Prepares the rows of a Dataset of Ray Data that the user already has.

A Dataset is a recipe: each look at it can compute it anew, on other machines and in another order.
So its rows are written once, as Parquet in the order in which they come. All else is what is done
with files of the user's own.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from pydantic import PositiveInt

from raymtl.data.prepared.encode_shard import OUTPUT
from raymtl.data.prepared.manifest import ROWS, Manifest
from raymtl.data.prepared.output import check_folder_can_follow, checked_output
from raymtl.data.prepared.prepare import SHARD_MB, prepare
from raymtl.data.shards.store import Store
from raymtl.data.tables.fit_stream import NotStreamableError
from raymtl.data.tables.source import Files
from raymtl.distributed.prepare_shards import on_ray
from raymtl.distributed.sum_blocks import sum_on_ray
from raymtl.distributed.tensor_columns import without_tensors
from raymtl.schema.base import parse
from raymtl.types import Spec, UserError

FILE_BYTES = 1 << 24
"""Of the rows in a file, about; they are a block that is read at a time."""
MOST_ROWS = 100_000
"""Rows of a file at most."""
COMPLETE = "complete.json"
"""Is beside the files when all of them are there: their columns and the number of rows."""
BATCH_ROWS = 256
"""Rows of a batch of Ray Data; the first batch says how many rows fit into a file."""


class DatasetRows(Spec):
    """The rows of a Dataset that have all been written."""

    columns: Mapping[str, str]
    """The names of the columns, and what Ray says of their types."""
    rows: PositiveInt


class _Keys(Spec):
    """The root of `data`, so that mistakes are told under their dotted keys."""

    data: Files


def prepare_dataset(
    dataset: ray.data.Dataset,
    data: Mapping[str, Any],
    output: str,
    *,
    shard_mb: float = SHARD_MB,
) -> Manifest:
    """Prepares the rows of a Dataset, as `raymtl data prepare` does with files.

    The rows pass once through this process, which writes them below `output` in their order; Ray
    Data then encodes them on all machines. If it is interrupted, call it again: rows that are
    complete are not asked of the Dataset again.

    Args:
        dataset: Rows with any columns of Arrow, or tensors. Tensors of uint8 and shape [H, W] or
            [H, W, channels] become pictures (PNG, without loss); others become lists.
        data: The keys of `data: {name: files}`, such as `{"tasks": {"y": {}}}`, without `path`.
        output: A folder or a URL that all machines reach; `data: {name: prepared, path: OUTPUT}`
            trains from it.
        shard_mb: About how many megabytes of encoded rows a shard has.

    Raises:
        UserError: For rows or keys that nothing can be learned from, and for an `output` that holds
            something else.

    Example:
        >>> flats = ray.data.from_items(rows)
        >>> prepare_dataset(flats, {"tasks": {"rent": {}}}, "prepared")
    """
    place = checked_output(output)
    check_folder_can_follow(place)
    store = Store(place, OUTPUT)
    rows = store.place(ROWS)
    _write_rows(dataset, Store(rows, OUTPUT))
    keys = {**data, "name": "files", "path": rows, "format": "parquet"}
    source = _fitted(keys)
    return prepare(source, place, driver=on_ray, sum_blocks=sum_on_ray, shard_mb=shard_mb)


def _fitted(keys: Mapping[str, Any]) -> Files:
    """The rows with all findings. Those larger than memory are looked at by rows; other episodes
    can be drawn from the shards.
    """
    try:
        return parse(_Keys, {"data": keys}).data.resolve()
    except NotStreamableError:
        by_rows = parse(_Keys, {"data": {**keys, "episodes": "rows"}}).data.resolve()
        return by_rows.for_episodes(keys["episodes"])


def _write_rows(dataset: ray.data.Dataset, store: Store) -> None:
    """Writes all rows as files of Parquet, unless they are there."""
    schema = dataset.schema()
    columns: dict[str, str] = {}
    if schema is not None:
        columns = {name: str(kind) for name, kind in zip(schema.names, schema.types, strict=True)}
    if store.holds(COMPLETE):
        _check_columns(columns, store)
        return
    for name in store.sizes():  # of a call that was interrupted
        store.remove(name)
    num_rows = 0
    for number, table in enumerate(_files(dataset)):
        num_rows += len(table)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=len(table), write_page_checksum=True)
        store.publish(f"rows-{number:06d}.parquet", sink.getvalue())
    if not num_rows:
        raise UserError("dataset: expected rows, got an empty Dataset. Look at what it is made of.")
    written = DatasetRows(columns=columns, rows=num_rows)
    store.publish(COMPLETE, written.model_dump_json().encode())


def _check_columns(columns: Mapping[str, str], store: Store) -> None:
    """Raises UserError if the rows that were written have other columns than the Dataset."""
    before = DatasetRows.model_validate_json(store.read(COMPLETE)).columns
    differing = sorted(set(before.items()) ^ set(columns.items()))
    if differing:
        name, kind = differing[0]
        raise UserError(
            f"{OUTPUT}: expected an empty folder or one of the same Dataset, got {store.shown}, "
            f"whose rows have other columns: {name} ({kind}). Choose another folder, or remove "
            "this one."
        )


def _files(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    """The rows of each file. Where a file ends depends on the rows alone, and not on the blocks in
    which Ray has them.
    """
    dataset.context.enable_progress_bars = False
    dataset.context.execution_options.preserve_order = True
    plain = dataset.map_batches(without_tensors, batch_format="pyarrow", batch_size=BATCH_ROWS)
    waiting: list[pa.Table] = []
    num_waiting, rows_per_file = 0, 0
    batches: Any = plain.iter_batches(batch_format="pyarrow", batch_size=BATCH_ROWS)
    for batch in batches:
        if not rows_per_file:
            rows_per_file = max(1, min(MOST_ROWS, FILE_BYTES * len(batch) // batch.nbytes))
        waiting.append(batch)
        num_waiting += len(batch)
        while num_waiting >= rows_per_file:
            table = pa.concat_tables(waiting, promote_options="permissive")
            yield table[:rows_per_file]
            waiting, num_waiting = [table[rows_per_file:]], num_waiting - rows_per_file
    if num_waiting:
        yield pa.concat_tables(waiting, promote_options="permissive")
