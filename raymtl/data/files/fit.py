"""What is in the user's files: roles, classes, statistics, splits; found once, before anything starts."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raymtl.data.base import SPLITS
from raymtl.data.files.boxes import fit_boxes
from raymtl.data.files.columns import encode_column, fit_column, is_text, role_of, texts
from raymtl.data.files.labels import encode_task, fit_task
from raymtl.data.files.load import bucket_of, check_leak, sides_given, sides_of
from raymtl.data.files.maps import bytes_a_row, fit_maps
from raymtl.data.files.pictures import channels_of
from raymtl.data.files.rows import Opened, Rows, label_columns
from raymtl.data.files.schema import Fitted, FittedColumn, FittedTask, Role, Shades
from raymtl.data.files.shades import Unread, fit_shades
from raymtl.data.files.splits import UNKNOWN, sides_named
from raymtl.notes import Note
from raymtl.types import UserError

if TYPE_CHECKING:
    from raymtl.data.files.source import Files

LOOKED_AT = 64  # pictures, for whether they are grey
MOST_IN_POOL = 16  # blocks of a stream in memory at a time


def fit(source: "Files") -> Fitted:
    """What was found. Raises UserError for what cannot be learned from."""
    opened = Opened(source)
    streamed = _too_large(source, opened)
    numbers = _sample(source, opened) if streamed else list(range(len(opened.blocks)))
    rows, where = opened.together(numbers)
    roles, left_out = _roles(source, opened, rows, where)
    split_column = _split_column(source, opened, rows)
    sides = _sides(source, opened, numbers, rows, list(roles), split_column, where, streamed)
    train = sides == 0
    if not train.any():
        raise UserError("data.split: expected rows for training, got none. Correct data.split or the paths.")
    tasks, masks = _tasks(source, opened, numbers, rows, set(roles.values()), train, where)
    if source.episodes == "rows" and not streamed:
        _check_splits(masks, sides)
    columns = []
    for name, role in roles.items():
        own = rows.table[name].filter(pa.array(train))
        found = np.flatnonzero(train)
        columns.append(
            fit_column(
                own,
                name,
                role,
                lambda row, found=found: where(int(found[row])),  # type: ignore[misc]
                max_categories=source.max_categories,
                text_size=source.text_size,
            )
        )
    shape = _shape(source, opened, columns)
    shades, shade_notes = _shades(source, opened, numbers, rows, columns[0], train)
    if not streamed:
        _check_inputs(source, columns, rows, where)
    if source.episodes == "classes" and next(iter(tasks.values())).kind not in ("classification", "binary"):
        raise UserError(
            f"data.episodes: expected a task with classes for classes, got one of kind "
            f"{next(iter(tasks.values())).kind}. Set data.tasks.{next(iter(tasks))}.kind: classification."
        )
    return Fitted(
        settings=source.digest(),
        path=source.path,
        format=opened.format,
        columns=tuple(columns),
        left_out=left_out,
        tasks=tasks,
        notes=(*_ignored_notes(tasks), *opened.skipped_notes(), *shade_notes),
        split_by=_split_words(source, split_column, opened),
        split_column=split_column,
        input_shape=shape,
        shades=shades,
        rows=opened.num_rows,
        pool=_pool(source, opened, shape) if streamed else None,
    )


def _ignored_notes(tasks: Mapping[str, FittedTask]) -> tuple[Note, ...]:
    """The numbers in maps that say nothing."""
    return tuple(
        Note(
            place=f"task '{name}'",
            text=f"{', '.join(map(str, fitted.ignored))} in a map says nothing",
            key=f"data.tasks.{name}.ignore",
        )
        for name, fitted in tasks.items()
        if fitted.ignored
    )


def _tasks(
    source: "Files",
    opened: Opened,
    numbers: Sequence[int],
    rows: Rows,
    roles: Collection[str],
    train: np.ndarray,
    where: Callable[[int], str],
) -> tuple[dict[str, FittedTask], dict[str, np.ndarray]]:
    """What the labels of each task are, and which rows have one, [N]. Raises UserError for labels of no kind."""
    tasks: dict[str, FittedTask] = {}
    masks: dict[str, np.ndarray] = {}
    for name, task in source.tasks.items():
        column = next(iter(rows.labels[name].values()))
        about = "boxes" if name in opened.boxes else "maps" if opened.holds_maps(name, column) else ""
        if about and "picture" not in roles:
            raise UserError(
                f"data.tasks.{name}: expected inputs that are pictures, which the {about} are about, got "
                f"{', '.join(sorted(roles))}. Correct data.inputs, or leave the task away."
            )
        if name in opened.boxes:
            tasks[name] = fit_boxes(name, task, opened.boxes[name], column, train)
            masks[name] = column.is_valid().to_numpy(zero_copy_only=False)
        elif about:
            cells, _ = opened.cells(name, numbers, column)
            tasks[name] = fit_maps(name, task, cells, train)
            masks[name] = np.array([cell is not None for cell in cells])
        else:
            tasks[name] = fit_task(name, task, rows.labels[name], train, where)
            _, masks[name] = encode_task(name, tasks[name], rows.labels[name], where)
    return tasks, masks


def _check_splits(masks: Mapping[str, np.ndarray], sides: np.ndarray) -> None:
    """Raises UserError for a task without labels in the rows for validation or for testing."""
    for name, mask in masks.items():
        for side in (1, 2):
            if (sides == side).any() and not mask[sides == side].any():
                raise UserError(
                    f"data.tasks.{name}: expected labels in the rows for {SPLITS[side]}, got none in "
                    f"{int((sides == side).sum())} rows. Change data.split, or leave the task away."
                )


def _too_large(source: "Files", opened: Opened) -> bool:
    if opened.format == "pictures":
        height, width = source.size if isinstance(source.size, tuple) else (source.size, source.size)
        row = (source.channels or 3) * height * width + _bytes_of_maps(source, opened)
        return opened.megabytes(row) > source.in_memory_mb
    return opened.megabytes() > source.in_memory_mb


def _bytes_of_maps(source: "Files", opened: Opened) -> int:
    """What the labels of a row take that are maps."""
    size = source.size if isinstance(source.size, tuple) else (source.size, source.size)
    labels = opened.read(0).labels
    return sum(
        bytes_a_row(task.kind, size)
        for name, task in source.tasks.items()
        if opened.holds_maps(name, next(iter(labels[name].values())))
    )


def _sample(source: "Files", opened: Opened) -> list[int]:
    """Blocks by chance, of `fit_rows` rows together. Raises UserError for what cannot be streamed."""
    if source.episodes != "rows":
        raise UserError(
            f"data.episodes: expected rows where files are larger than data.in_memory_mb: {source.in_memory_mb:g}, got "
            f"{source.episodes}, which needs all rows in memory. Raise data.in_memory_mb."
        )
    order = np.random.default_rng(source.split.seed).permutation(len(opened.blocks)).tolist()
    chosen, rows = [], 0
    for number in order:
        chosen.append(number)
        rows += opened.blocks[number][1].rows or 0
        if rows >= source.fit_rows:
            break
    return sorted(chosen)


def _pool(source: "Files", opened: Opened, shape: tuple[int, ...]) -> int:
    """How many blocks fit into a quarter of the memory. Raises UserError where one does not."""
    row = int(np.prod(shape)) * (1 if len(shape) > 1 else 4) + 16 * len(source.tasks) + _bytes_of_maps(source, opened)
    largest = max(opened.blocks, key=lambda entry: entry[1].rows or 0)[1]
    block_mb = (largest.rows or 0) * row / 1e6
    if block_mb > source.in_memory_mb / 2:
        raise UserError(
            f"{largest.file}: expected blocks that fit twice into data.in_memory_mb: {source.in_memory_mb:g}, got one "
            f"of {largest.rows} rows, {block_mb:.0f} MB. Write Parquet with smaller row groups, or raise it."
        )
    return int(min(MOST_IN_POOL, len(opened.blocks), max(1, source.in_memory_mb / 4 // max(block_mb, 1e-9))))


def _roles(
    source: "Files", opened: Opened, rows: Rows, where: Callable[[int], str]
) -> tuple[dict[str, Role], dict[str, str]]:
    """The columns that are inputs, with their roles, and why others are none. Raises UserError."""
    given = source.inputs if not isinstance(source.inputs, str | tuple) else {}
    roles: dict[str, Role] = {}
    left_out: dict[str, str] = {}
    candidates = opened.candidates()
    for name, named in candidates.items():
        role = next((r for pattern, r in given.items() if pattern == name), None) or next(
            (r for pattern, r in given.items() if pattern not in opened.names and _matches(name, pattern)), None
        )
        if role is None:
            role, why = role_of(rows.table[name], source.max_categories)
            if role is None:
                if named:
                    raise UserError(
                        f"data.inputs: {where(0).rpartition(': ')[0]}: column '{name}': expected values to learn from, "
                        f"got {why}. Leave it away, or give it a role."
                    )
                left_out[name] = why
                continue
        roles[name] = role
    pictures = [name for name, role in roles.items() if role == "picture"]
    if pictures:
        others = [name for name in roles if name != pictures[0]]
        for name in others:
            if candidates[name]:
                raise UserError(
                    f"data.inputs: expected one column of pictures, or columns of values, got '{pictures[0]}' and "
                    f"'{name}'. Name one of them."
                )
            left_out[name] = f"beside the pictures of '{pictures[0]}'"
            del roles[name]
    if not roles:
        raise UserError(f"data.inputs: expected a column to learn from, got none of {list(candidates)}: {left_out}.")
    for name, task in source.tasks.items():
        both = sorted(set(label_columns(name, task)) & set(roles))
        if both:
            raise UserError(f"data.inputs: expected no label among them, got '{both[0]}' of task '{name}'. Remove it.")
    if source.inputs == "auto":
        for name in opened.names:
            if name not in roles and name not in left_out and name not in opened.candidates():
                if name in (source.group, source.key, source.split.column, source.split.key):
                    left_out[name] = "group, key or split"
                elif not any(name in label_columns(n, t) for n, t in source.tasks.items()):
                    left_out[name] = "excluded" if opened.format != "pictures" else "beside the pictures"
    column = _split_column(source, opened, rows)
    if column in roles and not candidates[column]:
        del roles[column]
        left_out[str(column)] = "names the splits"
    return roles, left_out


def _matches(name: str, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(name, pattern)


def _split_column(source: "Files", opened: Opened, rows: Rows) -> str | None:
    """The column that names the splits: the given one, or `split` where all of its values are names of splits."""
    if source.split.column:
        return source.split.column
    if "split" in opened.names and not any("split" in label_columns(n, t) for n, t in source.tasks.items()):
        found = sides_named(texts(rows.table["split"]))
        if (found != UNKNOWN).all() and len(np.unique(found)) > 1:
            return "split"
    return None


def _sides(
    source: "Files",
    opened: Opened,
    numbers: list[int],
    rows: Rows,
    inputs: list[str],
    column: str | None,
    where: Callable[[int], str],
    streamed: bool,
) -> np.ndarray:
    given, hashed = sides_given(source, rows, None, inputs, column, where)
    if column is None:
        counts = [opened.blocks[number][1].rows or 0 for number in numbers]
        of_block = [UNKNOWN if (side := opened.side(number)) is None else side for number in numbers]
        given = np.repeat(np.array(of_block, np.int8), counts)
    sides = sides_of(source, given, hashed, each_by_itself=streamed)
    what = "the class" if source.episodes == "classes" and source.group is None else f"{source.group}"
    check_leak(bucket_of(source, rows, where), sides, what, where)
    return sides


def _split_words(source: "Files", column: str | None, opened: Opened) -> str:
    if column:
        return f"column '{column}'"
    if any(opened.side(number) is not None for number in range(len(opened.blocks))):
        return "paths"
    shares = ":".join(f"{share:g}" for share in source.split.fractions)
    if source.group:
        return f"{shares} of the values of '{source.group}'"
    if source.episodes == "classes":
        return f"{shares} of the classes"
    return f"{shares} by the hash of {repr(source.split.key) if source.split.key else 'the inputs'}"


def _shape(source: "Files", opened: Opened, columns: list[FittedColumn]) -> tuple[int, ...]:
    if columns[0].role != "picture":
        return (sum(column.size for column in columns),)
    height, width = source.size if isinstance(source.size, tuple) else (source.size, source.size)
    return (source.channels or _channels(opened, columns[0].column), height, width)


def _channels(opened: Opened, column: str) -> int:
    """By some pictures, evenly spaced through the blocks."""
    contents = []
    each = max(1, LOOKED_AT // len(opened.blocks))
    for number in np.unique(np.linspace(0, len(opened.blocks) - 1, LOOKED_AT).astype(int)).tolist():
        reads = opened.contents(number, opened.read(number).table[column])
        for row in np.unique(np.linspace(0, len(reads) - 1, each).astype(int)).tolist():
            try:
                contents.append(reads[row]())
            except OSError:
                continue  # told when all are read
    return channels_of(contents)


def _shades(
    source: "Files", opened: Opened, numbers: Sequence[int], rows: Rows, column: FittedColumn, train: np.ndarray
) -> tuple[Shades | None, tuple[Note, ...]]:
    """What is black and white in the pictures for training; None where inputs are no pictures, or of 8 bits."""
    if column.role != "picture":
        return None, ()
    pictures: list[Unread] = []
    start = 0
    for number in numbers:
        size = opened.blocks[number][1].rows or 0
        own = rows.table[column.column].slice(start, size)
        named = texts(own).to_pylist() if is_text(own.type) else [opened.where(number, row) for row in range(size)]
        reads = opened.contents(number, own)
        pictures += [
            Unread(str(named[row]), reads[row]) for row in np.flatnonzero(train[start : start + size]).tolist()
        ]
        start += size
    return fit_shades(pictures, source.value_range)


def _check_inputs(source: "Files", columns: list[FittedColumn], rows: Rows, where: Callable[[int], str]) -> None:
    """Raises UserError for inputs that are no numbers, before anything has started."""
    for column in columns:
        if column.role in ("number", "vector"):
            out = np.empty((len(rows.table), column.size), np.float32)
            encode_column(column, rows.table[column.column], out, where, impute=source.missing_inputs == "mean")
