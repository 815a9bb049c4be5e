"""Which files are too large for memory, and how much of them is read at a time."""

import numpy as np

from raymtl.data.tables.dataset import TableDataset
from raymtl.data.tables.dense_labels import bytes_a_row
from raymtl.data.tables.settings import FilesConfig, height_and_width
from raymtl.storage.notes import Note
from raymtl.types import UserError

MOST_IN_POOL = 16  # blocks of a stream in memory at a time


class NotStreamableError(UserError):
    """Files that are larger than memory, for episodes that need all rows."""


def is_too_large(source: FilesConfig, dataset: TableDataset) -> bool:
    if dataset.format == "pictures":
        height, width = height_and_width(source.size)
        row = (source.channels or 3) * height * width + _bytes_of_maps(source, dataset)
        return dataset.megabytes(row) > source.in_memory_mb
    return dataset.megabytes() > source.in_memory_mb


def _bytes_of_maps(source: FilesConfig, dataset: TableDataset) -> int:
    """What the labels of a row take that are maps."""
    size = height_and_width(source.size)
    labels = dataset.read(0).labels
    return sum(
        bytes_a_row(task.task_kind, size)
        for name, task in source.tasks.items()
        if dataset.labels[name].are_maps(next(iter(labels[name].values())))
    )


def check_streamable(source: FilesConfig) -> None:
    """Raises UserError for episodes that cannot be streamed."""
    if source.episodes != "rows":
        raise NotStreamableError(
            "data.episodes: expected rows where files are larger than data.in_memory_mb: "
            f"{source.in_memory_mb:g}, got {source.episodes}, which needs all rows in memory. "
            "Raise data.in_memory_mb, or prepare the data with `raymtl data prepare`."
        )


def sample_blocks(source: FilesConfig, dataset: TableDataset) -> list[int]:
    """Blocks by chance, of `fit_rows` rows together."""
    order = np.random.default_rng(source.split.seed).permutation(len(dataset.blocks)).tolist()
    chosen, rows = [], 0
    for number in order:
        chosen.append(number)
        rows += dataset.blocks[number][1].rows or 0
        if rows >= source.fit_rows:
            break
    return sorted(chosen)


def sample_note(source: FilesConfig, dataset: TableDataset) -> Note | None:
    """On statistics of a sample of the blocks; None where it has all of them."""
    numbers = sample_blocks(source, dataset)
    if len(numbers) == len(dataset.blocks):
        return None
    rows = sum(dataset.blocks[number][1].rows or 0 for number in numbers)
    text = (
        f"classes, means and standard deviations are of {rows:,} of {dataset.num_rows:,} rows in "
        "blocks at random; `raymtl data prepare` finds them in all rows"
    )
    return Note(place="files", text=text, key="data.fit_rows")


def encoded_bytes(source: FilesConfig, dataset: TableDataset, shape: tuple[int, ...]) -> int:
    """About how many bytes an encoded row takes, whose input has this shape."""
    bytes_a_number = 4
    if len(shape) > 1:
        bytes_a_number = 1
    row = int(np.prod(shape)) * bytes_a_number + 16 * len(source.tasks)
    return row + _bytes_of_maps(source, dataset)


def blocks_in_memory(source: FilesConfig, dataset: TableDataset, shape: tuple[int, ...]) -> int:
    """How many blocks fit into a quarter of the memory. Raises UserError where one does not."""
    row = encoded_bytes(source, dataset, shape)
    largest = max(dataset.blocks, key=lambda entry: entry[1].rows or 0)[1]
    block_mb = (largest.rows or 0) * row / 1e6
    if block_mb > source.in_memory_mb / 2:
        raise UserError(
            f"{largest.file}: expected blocks that fit twice into data.in_memory_mb: "
            f"{source.in_memory_mb:g}, got one of {largest.rows} rows, {block_mb:.0f} MB. Write "
            "Parquet with smaller row groups, or raise it."
        )
    fitting = max(1, source.in_memory_mb / 4 // max(block_mb, 1e-9))
    return int(min(MOST_IN_POOL, len(dataset.blocks), fitting))
