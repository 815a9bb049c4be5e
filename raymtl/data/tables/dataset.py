"""The user's files as blocks of rows: all columns of a table, and the labels of every task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raymtl.data.tables.blocks import Block
from raymtl.data.tables.column_names import candidates, check_name, names_of_all
from raymtl.data.tables.columns import LocateRow, plain
from raymtl.data.tables.folders import named_first
from raymtl.data.tables.label_files import MapLabels
from raymtl.data.tables.map_files import ColumnMaps, FoundMaps
from raymtl.data.tables.opened_files import open_files
from raymtl.data.tables.paths import FileSet
from raymtl.data.tables.picture_files import PictureFiles
from raymtl.data.tables.schema import Fitted, TextForm
from raymtl.data.tables.settings import FilesConfig
from raymtl.data.tables.stored import as_type, common
from raymtl.data.tables.task_labels import LabelColumns, RawBlock
from raymtl.data.tables.written_cells import cells_of_column, read_column, read_columns
from raymtl.storage.notes import Note
from raymtl.types import UserError


class TableRows(NamedTuple):
    """Some rows: all columns, and of each task those with its labels."""

    table: pa.Table
    labels: Mapping[str, LabelColumns]


class Forms(NamedTuple):
    """How texts are read, where that is not as anybody would."""

    columns: Mapping[str, TextForm] = {}
    labels: Mapping[str, Mapping[str, TextForm]] = {}
    """Of each task those of its columns."""

    @classmethod
    def of(cls, fitted: Fitted | None) -> "Forms":
        """Those that were found in the files; none before anything was."""
        if fitted is None:
            return cls()
        return cls(fitted.forms, {name: task.forms for name, task in fitted.tasks.items()})


class TableDataset:
    """The blocks of all files, each read by its number."""

    def __init__(self, source: FilesConfig, piece_bytes: int | None = None) -> None:
        """Opens the files that a configuration names; CSV files larger than `piece_bytes` in
        pieces. Raises UserError where they do not fit it.
        """
        opened = open_files(source, piece_bytes)
        self.source = source
        self.parts = opened.parts
        self.labels = opened.labels
        """Of each task, where its labels are."""
        self.format = opened.format
        self._folder_notes = opened.notes
        self.blocks: list[tuple[int, Block]] = [
            (number, block) for number, part in enumerate(self.parts) for block in part.table.blocks
        ]
        """All blocks, each with the number of its part."""
        self.names = names_of_all(self.parts)
        """The columns that all parts have."""
        self.forms = Forms.of(source.fitted)
        self._map_files = ColumnMaps()
        maps = {file for file_set in self._map_folders() for file in file_set.files}
        self._picture_files = PictureFiles(maps)
        self.probe: Callable[[bytes], None] | None = None
        """Is called with every picture before it is decoded; raises OSError for one that must not
        be.
        """

    def read(self, number: int) -> TableRows:
        """The rows of the block with this number. Raises UserError for a cell that is not of the
        form of its column.
        """
        return self.formed(self.raw(number), lambda row: self.locate_row(number, row))

    def raw(self, number: int) -> TableRows:
        """The same with cells of text files as they are written there."""
        part_number, block = self.blocks[number]
        part = self.parts[part_number]
        rows = RawBlock(part, part.table.raw(block))
        labels = {name: of_task.read(rows) for name, of_task in self.labels.items()}
        return TableRows(rows.table.select(self.names), labels)

    def formed(self, rows: TableRows, locate_row: LocateRow) -> TableRows:
        """Rows as they are written, read in the forms of their columns."""
        forms = self.forms.columns
        written = [part.table.written for part in self.parts]
        cells = {
            name: cells_of_column(written, name)
            for name in rows.table.column_names
            if name in forms or name in self.written_columns
        }
        table = read_columns(rows.table, cells, forms, locate_row)
        labels: dict[str, dict[str, pa.ChunkedArray]] = {}
        for task, columns in rows.labels.items():
            of_task = self.forms.labels.get(task, {})
            labels[task] = {}
            for name, column in columns.items():
                task_cells = self.labels[task].cells(name)
                labels[task][name] = read_column(
                    column, name, of_task.get(name), task_cells, locate_row
                )
        return TableRows(table, labels)

    def together(
        self, numbers: Sequence[int], *, raw: bool = False
    ) -> tuple[TableRows, Callable[[int], str]]:
        """The rows of several blocks as one, and where each row is from; `raw` as they are written.
        Raises UserError where types do not agree.
        """
        read = self.raw if raw else self.read
        blocks = [read(number) for number in numbers]
        starts = np.cumsum([0] + [len(rows.table) for rows in blocks])

        def locate_row(row: int) -> str:
            index = int(np.searchsorted(starts, row, side="right")) - 1
            return self.locate_row(numbers[index], row - int(starts[index]))

        labels: dict[str, dict[str, pa.ChunkedArray]] = {}
        for task in self.labels:
            labels[task] = {}
            for column in blocks[0].labels[task]:
                parts = [rows.labels[task][column] for rows in blocks]
                labels[task][column] = self._concatenated(parts, numbers, column)
        # By their positions, since a table looks through all names for each.
        columns_of_blocks = [rows.table.columns for rows in blocks]
        columns = {
            name: self._concatenated(parts, numbers, name)
            for name, *parts in zip(self.names, *columns_of_blocks, strict=True)
        }
        return TableRows(pa.table(columns), labels), locate_row

    def _concatenated(
        self, columns: Sequence[pa.ChunkedArray], numbers: Sequence[int], name: str
    ) -> pa.ChunkedArray:
        """One column. Labels are null in the blocks of other tasks; else types agree already."""
        wanted = common([column.type for column in columns])
        if wanted is None:
            kinds = sorted({str(column.type) for column in columns})
            raise UserError(
                f"{self.blocks[numbers[0]][1].file}: column '{name}': expected one type in all "
                f"parts, got {' and '.join(kinds)}. Correct the parts."
            )
        chunks = [chunk for column in columns for chunk in as_type(column, wanted).chunks]
        return pa.chunked_array(chunks, wanted)

    def contents(self, number: int, column: pa.ChunkedArray) -> list[Callable[[], bytes]]:
        """What reads each picture of a column of a block: of paths below the folder of its file, or
        of bytes.
        """
        part_number, _ = self.blocks[number]
        reads = self._picture_files.contents(column, self.parts[part_number].file_set)
        if self.probe is None:
            return reads
        return [partial(_probed, read, self.probe) for read in reads]

    def unread_maps(self, task: str, numbers: Sequence[int], column: pa.ChunkedArray) -> FoundMaps:
        """The maps in the label column of these blocks, and the names of those that are missing."""
        maps = FoundMaps([], [])
        start = 0
        for number in numbers:
            part_number, block = self.blocks[number]
            size = block.rows or 0
            values = plain(column.slice(start, size))
            start += size
            folder = self.labels[task].folder(self.parts[part_number])
            of_block = self._map_files.of(values, folder, partial(self.locate_row, number))
            maps.maps.extend(of_block.maps)
            maps.missing.extend(of_block.missing)
        return maps

    def candidates(self) -> dict[str, bool]:
        """The columns that could be inputs -> whether they were named, in the order of their names
        or of the table.
        """
        return candidates(self.source, self.names, self.format)

    def check_fitted(self, fitted: Fitted) -> None:
        """Raises UserError where files that have moved lack a column of those that the inputs were
        found in.
        """
        shown = self.parts[0].file_set.shown
        known = frozenset(self.names)
        for column in fitted.columns:
            if column.column not in known:
                check_name("data.path", column.column, self.names, shown)
        if fitted.split_column is not None:
            check_name("data.path", fitted.split_column, self.names, shown)

    @cached_property
    def names_of_files(self) -> frozenset[str]:
        """Columns of names of files and folders, which are never numbers."""
        return frozenset(name for part in self.parts for name in part.table.written.names)

    @cached_property
    def written_columns(self) -> frozenset[str]:
        """Columns of cells as they are written in text files."""
        return frozenset(name for part in self.parts for name in part.table.written.columns)

    @property
    def commas_divide(self) -> bool | None:
        """Whether commas stand between the cells of text files, or semicolons; None where that is
        open.
        """
        said = {part.table.written.commas_divide for part in self.parts} - {None}
        if said:
            return any(said)
        return None

    @property
    def header_notes(self) -> tuple[Note, ...]:
        """On headers that look like a row of data."""
        return tuple(note for part in self.parts for note in part.table.written.notes)

    def skipped_notes(self) -> list[Note]:
        """Notes on the files that are passed over, for their names or their kind."""
        file_sets = [*(part.file_set for part in self.parts), *self._map_folders()]
        skipped = list(dict.fromkeys(file for file_set in file_sets for file in file_set.skipped))
        if not skipped:
            return [*self._folder_notes]
        text = (
            f"{len(skipped)} are passed over, since their names or folders begin with . or _: "
            f"{named_first(skipped)}"
        )
        return [*self._folder_notes, Note(place="files", text=text, key="data.path")]

    def _map_folders(self) -> Iterator[FileSet]:
        for labels in self.labels.values():
            if isinstance(labels, MapLabels):
                yield labels.map_set

    def file_sets(self) -> Iterator[FileSet]:
        """The files of the rows, and those that labels are read from."""
        for part in self.parts:
            yield part.file_set
        for labels in self.labels.values():
            if labels.file_set is not None:
                yield labels.file_set

    def split_of(self, number: int) -> int | None:
        """The split that the path of a block says."""
        part_number, block = self.blocks[number]
        part_split = self.parts[part_number].split
        if part_split is None:
            return block.split
        return part_split

    @cached_property
    def splits_of_paths(self) -> set[int]:
        """The splits that the paths of any blocks say."""
        splits = {self.split_of(number) for number in range(len(self.blocks))}
        return {split for split in splits if split is not None}

    def locate_row(self, number: int, row: int) -> str:
        """File and row of a row of a block."""
        part_number, block = self.blocks[number]
        return self.parts[part_number].table.locate_row(block, row)

    def megabytes(self, numbers_a_row: int | None = None) -> float:
        """The size of all rows, by that of the files or, where it is known, by what a row
        becomes.
        """
        if numbers_a_row is not None:
            return self.num_rows * numbers_a_row / 1e6
        sizes = 0
        for part in self.parts:
            files = list(part.file_set.files)
            sizes += sum(info.size for info in part.file_set.fs.get_file_info(files))
        return float(sizes) / 1e6

    @property
    def num_rows(self) -> int:
        """The number of rows of all blocks."""
        return sum(block.rows or 0 for _, block in self.blocks)


def _probed(read: Callable[[], bytes], probe: Callable[[bytes], None]) -> bytes:
    content = read()
    probe(content)
    return content
