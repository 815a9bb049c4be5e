"""The user's files opened together: the table or the pictures, and the labels that lie in files of
their own.
"""

import difflib
import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raymtl.data.base import SPLITS
from raymtl.data.tables.blocks import Block, Cells, Reading, Table, agree
from raymtl.data.tables.boxes import Boxes, holds_boxes, read_boxes, sources_of
from raymtl.data.tables.cells import formed, missing_words, plainly
from raymtl.data.tables.columns import (
    LocateRow,
    holds_pictures,
    is_bytes,
    is_list,
    is_text,
    named_files,
    plain,
    texts,
)
from raymtl.data.tables.dense_labels import UnreadMap, array_of, array_of_lists
from raymtl.data.tables.folders import FILE, named_first, open_pictures
from raymtl.data.tables.joins import joined
from raymtl.data.tables.paths import (
    MAPS,
    TABLES,
    FileSet,
    Listing,
    absolute,
    files_below,
    format_of,
    key_of,
    locate,
    stems_below,
)
from raymtl.data.tables.plain_cells import plain_cells
from raymtl.data.tables.readers import open_table
from raymtl.data.tables.schema import Fitted, Format, TaskColumn, TextForm, label_text
from raymtl.data.tables.settings import FilesConfig
from raymtl.data.tables.stored import as_type, common
from raymtl.notes import Note
from raymtl.types import UserError


class TableRows(NamedTuple):
    """Some rows: all columns, and of each task those with its labels."""

    table: pa.Table
    labels: Mapping[str, Mapping[str, pa.ChunkedArray]]


class _Part(NamedTuple):
    file_set: FileSet
    table: Table
    split: int | None
    task: str | None


def label_columns(name: str, task: TaskColumn) -> tuple[str, ...]:
    """The columns that hold the labels of the task of this name. (Those of boxes are of a table of
    their own.)
    """
    kind = task.task_kind
    if kind is not None and kind.has_boxes:
        return (name,)
    return task.columns or (task.column or name,)


class TableDataset:
    """The blocks of all files, each read by its number."""

    def __init__(self, source: FilesConfig) -> None:
        self.source = source
        self.reading = Reading(
            source.missing_values, source.delimiter, source.encoding, source.columns
        )
        fitted = source.fitted
        self.forms: Mapping[str, TextForm] | None
        if fitted:
            self.forms = fitted.forms
        else:
            self.forms = {}
        """How the texts of columns are read; None before that is found, when cells stay as they are
        written.
        """
        self.label_forms: dict[str, Mapping[str, TextForm]] = {}
        """The same of the labels of tasks."""
        if fitted:
            self.label_forms |= {name: task.forms for name, task in fitted.tasks.items()}
        self.parts: list[_Part] = []
        self.maps: dict[str, FileSet] = {}
        """Of the tasks whose maps lie in a folder of their own."""
        self.listings: dict[int, tuple[Listing, set[str]]] = {}
        """Of the places that maps are looked for in, by the identity of the place."""
        self.pictures: dict[int, Listing] = {}
        """The same of tables whose pictures are not where their names say."""
        self.stems: dict[str, dict[str, str]] = {}
        """Of the tasks in `maps`: name -> file."""
        self.alone: Counter[str] | None = None
        """How many pictures are called so, without folder and ending."""
        self.boxes: dict[str, Boxes] = {}
        """Of the tasks that are detections."""
        self.every: list[str] | None = None
        """The names of all pictures of a folder, once they were asked for."""
        self.folder_notes: list[Note] = []
        """What is to be said of the folders of pictures."""
        beside: set[str] = set()  # files of boxes, which are no tables of labels
        for name, task in source.tasks.items():
            if task.path:
                file_set = locate(
                    absolute(task.path, f"data.tasks.{name}.path"), f"data.tasks.{name}.path"
                )
                if holds_boxes(file_set, task):
                    self.boxes[name] = read_boxes(
                        file_set, task, self.reading, f"data.tasks.{name}.path"
                    )
                    beside |= set(sources_of(file_set))
                elif _holds_maps(file_set, task):
                    self.maps[name] = file_set
            elif task.task_kind is not None and task.task_kind.has_boxes:
                raise UserError(
                    f"data.tasks.{name}.path: expected where the boxes are, a folder of XML, JSON "
                    "of COCO or a table, got none. Add it."
                )
        self._beside = frozenset(beside)
        if isinstance(source.path, Mapping):
            for split, path in source.path.items():
                self._add(path, f"data.path.{split}", split=SPLITS.index(split))
        else:
            for path in (source.path,) if isinstance(source.path, str) else source.path:
                if path:
                    self._add(path, "data.path")
        labels = self.reading._replace(columns=())  # of files of their own, which have a header
        self.joined: dict[str, tuple[pa.Table, str, FileSet]] = {}
        self.written: dict[str, Cells] = {}
        """Of the tasks in `joined`."""
        for name, task in source.tasks.items():
            if name in self.maps or name in self.boxes:
                continue
            if task.path and source.key:
                file_set = locate(
                    absolute(task.path, f"data.tasks.{name}.path"), f"data.tasks.{name}.path"
                )
                table = open_table(
                    file_set, self._form(file_set), labels, f"data.tasks.{name}.path"
                )
                agree([table], lambda _: True)
                whole = pa.concat_tables(
                    [table.raw(block) for block in table.blocks], promote_options="permissive"
                )
                self.joined[name] = (
                    _with_key(whole, str(source.key), table.written),
                    file_set.shown,
                    file_set,
                )
                self.written[name] = table.written
            elif task.path:
                self._add(task.path, f"data.tasks.{name}.path", task=name)
        if not self.parts:
            raise UserError(
                "data.path: expected a file, a folder or a URL, got none. Give the path of your "
                "data."
            )
        self._check_parts()
        self.blocks: list[tuple[int, Block]] = [
            (number, block) for number, part in enumerate(self.parts) for block in part.table.blocks
        ]
        self.known = frozenset.intersection(*(frozenset(part.table.names) for part in self.parts))
        self.names = [name for name in self.parts[0].table.names if name in self.known]
        self._check_names()
        agree([part.table for part in self.parts], self._may_be_text)

    def _may_be_text(self, name: str) -> bool:
        """Whether a column that is numbers in one file and texts in another can be texts in both:
        it is no input.
        """
        given = self.source.inputs
        if isinstance(given, Mapping) and name in given:
            return given[name] in ("category", "text")
        return name not in self.candidates()

    def _add(self, path: str, key: str, split: int | None = None, task: str | None = None) -> None:
        file_set = locate(absolute(path, key), key)
        form = self._form(file_set)
        if form == "pictures":
            tasks = [(n, t) for n, t in self.source.tasks.items() if t.may_be_maps]
            labels = {file for maps in self.maps.values() for file in maps.files} | self._beside
            file_set = file_set._replace(
                files=tuple(file for file in file_set.files if file not in labels)
            )
            columns = {column for n, t in tasks for column in label_columns(n, t)}
            table, notes = open_pictures(file_set, self.reading, key, columns)
            self.folder_notes += notes
        else:
            table = open_table(file_set, form, self.reading, key)
        self.parts.append(_Part(file_set, table, split, task))
        self.format: Format = form

    def skipped_notes(self) -> list[Note]:
        """Of the files that are passed over, for their names or their kind."""
        file_sets = [*(part.file_set for part in self.parts), *self.maps.values()]
        skipped = list(dict.fromkeys(file for file_set in file_sets for file in file_set.skipped))
        if not skipped:
            return self.folder_notes
        text = f"{len(skipped)} are passed over, since their names or folders begin with . or _: {named_first(skipped)}"
        return [*self.folder_notes, Note(place="files", text=text, key="data.path")]

    def _form(self, file_set: FileSet) -> Format:
        return self.source.format or format_of(file_set, "data.path")

    def _check_parts(self) -> None:
        first, *others = self.parts
        own = {name for task in self.source.tasks.items() for name in label_columns(*task)}
        for other in others:
            odd = sorted((set(first.table.names) ^ set(other.table.names)) - own)
            if odd:
                if odd[0] in other.table.names:
                    has = "has"
                else:
                    has = "lacks"
                raise UserError(
                    f"{other.file_set.shown}: expected the columns of {first.file_set.shown}, got "
                    f"others: it {has} '{odd[0]}'. All parts must have the same columns."
                )

    def _check_names(self) -> None:
        source, shown = self.source, self.parts[0].file_set.shown
        for key, name in (
            ("group", source.group),
            ("split.column", source.split.column),
            ("split.key", source.split.key),
        ):
            if name is not None:
                self._check_name(f"data.{key}", name, self.names, shown)
        for task, (table, path, _) in self.joined.items():
            for name in (source.key, *label_columns(task, source.tasks[task])):
                self._check_name(f"data.tasks.{task}", str(name), table.column_names, path)
            self._check_name("data.key", str(source.key), self.names, shown)
        for task, asked in source.tasks.items():
            for column in label_columns(task, asked) if self._in_columns(task, asked) else ():
                own = asked.path and task not in self.maps
                if own:
                    holders = [p for p in self.parts if p.task == task]
                else:
                    holders = list(self.parts)
                for part in holders if task not in self.joined else []:
                    if part.task in (None, task):
                        self._check_name(
                            f"data.tasks.{task}", column, part.table.names, part.file_set.shown
                        )
        if not isinstance(source.inputs, str):
            for name in source.inputs:
                if name not in self.known and not any(
                    fnmatchcase(other, name) for other in self.names
                ):
                    self._check_name("data.inputs", name, self.names, shown)

    def check_fitted(self, found: Fitted) -> None:
        """Raises UserError where files that have moved lack a column of those that the inputs were
        found in.
        """
        for column in found.columns:
            self._check_name("data.path", column.column, self.known, self.parts[0].file_set.shown)
        if found.split_column is not None:
            self._check_name(
                "data.path", found.split_column, self.names, self.parts[0].file_set.shown
            )

    def _in_columns(self, task: str, asked: TaskColumn) -> bool:
        """Whether the labels stand in columns of a table, not in files that are found by the names
        of pictures.
        """
        return task not in self.boxes and (task not in self.maps or asked.column is not None)

    def _check_name(self, key: str, name: str, names: Collection[str], shown: str) -> None:
        if name in names:
            return
        names = list(names)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        listed = ", ".join(f"'{known}'" for known in names[:12]) + (
            " ..." if len(names) > 12 else ""
        )
        if close:
            hint = f" Did you mean '{close[0]}'?"
        else:
            hint = ""
        if name.isdigit() and not close:
            hint = " YAML reads 010 and 1_000 as other numbers: put such a name in quotes."
        raise UserError(f"{key}: {shown}: expected the column '{name}', got {listed}.{hint}")

    def candidates(self) -> dict[str, bool]:
        """The columns that could be inputs -> whether they were named, in the order of their names
        or of the table.
        """
        source = self.source
        if not isinstance(source.inputs, str):
            chosen: list[str] = []
            for name in source.inputs:
                chosen += (
                    [name]
                    if name in self.known
                    else [n for n in self.names if fnmatchcase(n, name)]
                )
            return dict.fromkeys(chosen, True)
        taken = {name for task in source.tasks.items() for name in label_columns(*task)}
        taken |= {source.group, source.key, source.split.column, source.split.key}  # type: ignore[arg-type]
        if self.format == "pictures":
            return {FILE: True}
        left = [
            n
            for n in self.names
            if n not in taken and not any(fnmatchcase(n, e) for e in source.exclude)
        ]
        return dict.fromkeys(left, False)

    def read(self, number: int) -> TableRows:
        """The rows of the block with this number. Raises UserError for a cell that is not of the
        form of its column.
        """
        rows = self._raw(number)
        if self.forms is None:
            return rows
        return self.formed(rows, lambda row: self.locate_row(number, row))

    def formed(self, rows: TableRows, locate_row: LocateRow) -> TableRows:
        """The same rows with texts read in the forms of their columns."""
        forms = self.forms or {}
        written = [part.table.written for part in self.parts]
        table = dict(zip(rows.table.column_names, rows.table.columns, strict=True))
        cells = {
            name: _written(written, name)
            for name in table
            if name in forms or name in self.written_columns
        }
        plain = [name for name in cells if name not in forms and is_text(table[name].type)]
        done: set[str] = set()
        if plain:
            found = plain_cells([table[name] for name in plain], cells[plain[0]].missing)
            done = {plain[index] for index in found.numbers}
            table |= {
                plain[index]: pa.chunked_array([values]) for index, values in found.numbers.items()
            }
        for name in cells.keys() - done:
            table[name] = _formed(table[name], name, forms.get(name), cells[name], locate_row)
        labels = {}
        for task, columns in rows.labels.items():
            of_task = self.label_forms.get(task, {})
            labels[task] = {
                name: _formed(
                    column, name, of_task.get(name), self.cells_of(task, name), locate_row
                )
                for name, column in columns.items()
            }
        return TableRows(pa.table(table), labels)

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

    def cells_of(self, task: str, column: str) -> Cells:
        """How the cells of a column of labels are written."""
        if task in self.written:
            own = [self.written[task]]
        else:
            own = [part.table.written for part in self.parts]
        return _written(own, column, self.classes_of(task))

    def classes_of(self, task: str) -> tuple[str, ...]:
        """The classes that the configuration names, as they are written in files."""
        return tuple(label_text(value) for value in self.source.tasks[task].classes or ())

    def _raw(self, number: int) -> TableRows:
        part_number, block = self.blocks[number]
        part = self.parts[part_number]
        table = part.table.raw(block)
        labels: dict[str, Mapping[str, pa.ChunkedArray]] = {}
        for name, task in self.source.tasks.items():
            columns = label_columns(name, task)
            if name in self.joined:
                keyed = _with_key(table, str(self.source.key), part.table.written)
                found = dict(
                    joined(keyed, self.joined[name][0], str(self.source.key), self.joined[name][1])
                )
                labels[name] = {column: found[column] for column in columns}
            elif name in self.boxes:
                names = self._names(name, table)
                index = self.boxes[name].of(names, self._every(names))
                labels[name] = {columns[0]: pa.chunked_array([index])}
            elif name in self.maps and not task.column:
                labels[name] = {columns[0]: pa.chunked_array([self._maps_of(name, table)])}
            elif part.task in (None, name) and all(
                column in table.column_names for column in columns
            ):
                labels[name] = {column: table[column] for column in columns}
            else:
                labels[name] = {
                    column: pa.chunked_array([pa.nulls(len(table))]) for column in columns
                }
        return TableRows(table.select(self.names), labels)

    def split_of(self, number: int) -> int | None:
        """The split that the path of a block says."""
        part_number, block = self.blocks[number]
        own = self.parts[part_number].split
        if own is None:
            return block.split
        return own

    def locate_row(self, number: int, row: int) -> str:
        """File and row of a row of a block."""
        part_number, block = self.blocks[number]
        return self.parts[part_number].table.locate_row(block, row)

    def together(self, numbers: Sequence[int]) -> tuple[TableRows, Callable[[int], str]]:
        """The rows of several blocks as one, and where each row is from. Raises UserError where
        types do not agree.
        """
        read = [self.read(number) for number in numbers]
        starts = np.cumsum([0] + [len(rows.table) for rows in read])

        def locate_row(row: int) -> str:
            part = int(np.searchsorted(starts, row, side="right")) - 1
            return self.locate_row(numbers[part], row - int(starts[part]))

        tables = [rows.table for rows in read]
        labels = {
            task: {
                column: self._concatenated(
                    [rows.labels[task][column] for rows in read], numbers, column
                )
                for column in read[0].labels[task]
            }
            for task in self.source.tasks
        }
        # By their places, for a table looks through all names for each.
        whole = {
            name: self._concatenated(columns, numbers, name)
            for name, *columns in zip(self.names, *(table.columns for table in tables), strict=True)
        }
        return TableRows(pa.table(whole), labels), locate_row

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
        file_set = self.parts[part_number].file_set
        if (
            pa.types.is_struct(column.type)
            or pa.types.is_binary(column.type)
            or pa.types.is_large_binary(column.type)
        ):
            values = [
                value.get("bytes") if isinstance(value, dict) else value
                for value in column.to_pylist()
            ]
            return [lambda value=value: value or _nothing() for value in values]  # type: ignore[misc]
        paths = self._paths(file_set, texts(column).to_pylist())
        return [lambda path=path: file_set.read(path) if path else _nothing() for path in paths]  # type: ignore[misc]

    def _paths(self, file_set: FileSet, names: Sequence[str | None]) -> list[str | None]:
        """Below the folder of the table; where the first is not, all of them are looked for by
        their names.
        """
        below = [name and posixpath.join(file_set.root, name.replace("\\", "/")) for name in names]
        first = next((path for path in below if path), None)
        if first is None or file_set.is_there(first):
            return below
        if id(file_set) not in self.pictures:
            labels = {file for maps in self.maps.values() for file in maps.files}
            files = tuple(
                file for file in files_below(file_set.fs, file_set.root).files if file not in labels
            )
            self.pictures[id(file_set)] = Listing(file_set._replace(files=files))
        return [
            found or path
            for found, path in zip(self.pictures[id(file_set)].found(names), below, strict=True)
        ]

    def _maps_of(self, task: str, table: pa.Table) -> pa.Array:
        """The map of each row out of the task's own folder: of the name that its picture has."""
        names = self._names(task, table)
        if task not in self.stems:
            self.stems[task] = stems_below(self.maps[task])
        stems = self.stems[task]
        if self.alone is None and self.format == "pictures":
            tables = [part.table.read(block) for part in self.parts for block in part.table.blocks]
            self.alone = Counter(
                _stem(file) for table in tables for file in table[FILE].to_pylist()
            )
        alone = self.alone or Counter(_stem(name) for name in names if name)
        found = [
            name
            and (
                stems.get(key_of(name))
                or stems.get(_path(name))
                or (stems.get(_stem(name)) if alone[_stem(name)] == 1 else None)
            )
            for name in names
        ]
        return pa.array(found, pa.string())

    def _every(self, names: Sequence[str | None]) -> Sequence[str | None]:
        """The names of all pictures, as far as they are known: of tables those at hand."""
        if self.format != "pictures":
            return names
        if self.every is None:
            tables = [part.table.read(block) for part in self.parts for block in part.table.blocks]
            self.every = [file for table in tables for file in table[FILE].to_pylist()]
        return self.every

    def _names(self, task: str, table: pa.Table) -> list[str | None]:
        """What the rows are called: by their key, or by the names of their pictures."""
        if self.source.key:
            self._check_name(
                "data.key", self.source.key, table.column_names, self.parts[0].file_set.shown
            )
            named = [self.source.key]
        elif self.format == "pictures":
            named = [FILE]
        else:
            own = {column for each in self.source.tasks.items() for column in label_columns(*each)}
            kept = [n for n in table.column_names if n not in own and is_text(plain(table[n]).type)]
            named = [n for n in kept if named_files(texts(table[n]))]
        if not named:
            raise UserError(
                f"data.tasks.{task}.path: expected a column with the names of pictures, after "
                f"which the maps are called, got {table.column_names}. Say data.key, the column "
                "that names the maps."
            )
        names: list[str | None] = texts(table[named[0]]).to_pylist()
        return names

    def holds_maps(self, task: str, column: pa.ChunkedArray) -> bool:
        """Whether these labels are maps, by what was asked for or by how they look."""
        kind = self.source.tasks[task].task_kind
        if task in self.maps:
            return True
        if kind is not None:
            return kind.is_map
        if task in self.boxes:
            return False
        values = plain(column)
        if is_list(values.type):
            inner = values.type.value_type
            return is_list(inner) and not is_text(inner.value_type)
        return (is_bytes(values.type) and holds_pictures(values)) or (
            is_text(values.type) and named_files(texts(values), MAPS)
        )

    def cells(
        self, task: str, numbers: Sequence[int], column: pa.ChunkedArray
    ) -> tuple[list[UnreadMap | None], list[str]]:
        """The maps in the label column of these blocks, and the names of those that are not
        there.
        """
        found: list[UnreadMap | None] = []
        gone: list[str] = []
        start = 0
        for number in numbers:
            size = self.blocks[number][1].rows or 0
            part = plain(column.slice(start, size))
            start += size
            if is_text(part.type) or pa.types.is_null(part.type):
                found += self._named_cells(task, number, texts(part).to_pylist(), gone)
                continue
            if pa.types.is_struct(part.type) and not any(
                value and value.get("bytes") for value in part.to_pylist()
            ):
                names = [value and value.get("path") for value in part.to_pylist()]
                found += self._named_cells(task, number, names, gone)
                continue
            for row, value in enumerate(part):
                found.append(
                    _cell(f"{self.locate_row(number, row)}", value) if value.is_valid else None
                )
        return found, gone

    def _named_cells(
        self, task: str, number: int, names: Sequence[str | None], gone: list[str]
    ) -> Iterator[UnreadMap | None]:
        file_set = self.parts[self.blocks[number][0]].file_set
        if task in self.joined:
            file_set = self.joined[task][2]
        if task in self.maps:
            file_set = self.maps[task]
        if id(file_set) not in self.listings:
            self.listings[id(file_set)] = Listing(file_set), set(file_set.files)
        listing, there = self.listings[id(file_set)]
        listed = listing.found(names)
        paths = [file or (name and posixpath.join(file_set.root, name.replace("\\", "/")))
                 for file, name in zip(listed, names, strict=True)]  # fmt: skip
        unlisted = [path for file, path in zip(listed, paths, strict=True) if path and not file]
        if unlisted:
            there = there | {
                info.path for info in file_set.fs.get_file_info(unlisted) if info.is_file
            }
        for name, path in zip(names, paths, strict=True):
            if path and path not in there:
                gone.append(str(name))
            yield (
                UnreadMap(path, partial(_read, file_set, path)) if path and path in there else None
            )

    def megabytes(self, numbers_a_row: int | None = None) -> float:
        """Of all rows, by the sizes of the files or, where it is known, by what a row becomes."""
        if numbers_a_row is not None:
            return sum(block.rows or 0 for _, block in self.blocks) * numbers_a_row / 1e6
        return (
            sum(
                info.size
                for part in self.parts
                for info in part.file_set.fs.get_file_info(list(part.file_set.files))
            )
            / 1e6
        )

    @property
    def num_rows(self) -> int:
        """Of all blocks."""
        return sum(block.rows or 0 for _, block in self.blocks)


def _with_key(table: pa.Table, key: str, written: Cells) -> pa.Table:
    """With keys as anybody would read them, so that 7 and 7.0 are one."""
    if key not in written.columns or key not in table.column_names:
        return table
    index = table.column_names.index(key)
    return table.set_column(index, key, plainly(table[key], written.missing))


def _written(tables: Sequence[Cells], name: str, kept: Collection[str] = ()) -> Cells:
    """How the cells of a column are written, those that are kept counting as values."""
    names = frozenset().union(*(table.names for table in tables))
    found = next((table for table in tables if name in table.columns), Cells())
    if not kept:
        return found._replace(names=names)
    missing = missing_words(word for word in found.missing.to_pylist() if word not in kept)
    return found._replace(names=names, missing=missing)


def _formed(
    column: pa.ChunkedArray, name: str, form: TextForm | None, written: Cells, locate_row: LocateRow
) -> pa.ChunkedArray:
    """A column in its form, or where it has none as anybody would read the cells of text files."""
    if name in written.names or not is_text(column.type):
        return column
    if form is None:
        if name in written.columns:
            values = plainly(column, written.missing)
        else:
            values = column
    else:
        values = formed(
            column, form, written.missing, lambda row: f"{locate_row(row)}, column '{name}'"
        )
    if isinstance(values, pa.ChunkedArray):
        return values
    return pa.chunked_array([values])


def _holds_maps(file_set: FileSet, task: TaskColumn) -> bool:
    """Whether the path of a task means maps, and no table or data set of its own."""
    maps = any(file.lower().endswith(MAPS) for file in file_set.files)
    tables = any(file.lower().endswith(TABLES) for file in file_set.files)
    kind = task.task_kind
    if kind is not None:
        return maps and kind.is_map
    return maps and not (task.column or task.columns or tables)


def _cell(name: str, value: pa.Scalar) -> UnreadMap:
    def read() -> np.ndarray:
        content = value.as_py()
        if isinstance(content, dict):
            content = content.get("bytes")
        if isinstance(content, list):
            return array_of_lists(content)
        return array_of(content or b"")

    return UnreadMap(name, read)


def _read(file_set: FileSet, path: str) -> np.ndarray:
    return array_of(file_set.read(path))


def _path(name: str) -> str:
    """Without its ending."""
    folder, _, last = key_of(name).rpartition("/")
    stem = last.rpartition(".")[0] or last
    return f"{folder}/{stem}".lstrip("/")


def _stem(name: str) -> str:
    return _path(name).rpartition("/")[2]


def _nothing() -> bytes:
    raise OSError("no picture is given")
