"""The rows of a run as Parquet, and as tables in Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MARK = "<!-- Everything below is written by `python -m benchmarks.peers --page`. -->\n"
Row = Mapping[str, Any]
OTHERS = ("its time / raymtl's", "its time / that of raymtl's fastest way")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Writes the rows; a file of the same name is replaced."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that `write_rows` wrote."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def write_page(path: Path, rows: Sequence[Row]) -> None:
    """Replaces what follows MARK in the page, or the page where it has no mark."""
    words = ""
    if path.exists():
        words = path.read_text().partition(MARK)[0]
    path.write_text(words + MARK + "\n" + tables(rows))


def tables(rows: Sequence[Row]) -> str:
    """How it was measured, a table of all subjects, and one for each of them."""
    subjects: dict[str, list[Row]] = {}
    for row in rows:
        subjects.setdefault(row["subject"], []).append(row)
    lines = [_about(rows), "", "## In short", "", *_summary(subjects)]
    for name, own in subjects.items():
        lines += ["", f"## {name[0].upper()}{name[1:]}", ""]
        lines += _table(own)
    return "\n".join(lines) + "\n"


def base_of(rows: Sequence[Row]) -> Row:
    """The row of the way that raymtl takes."""
    (base,) = [row for row in rows if row["base"]]
    return base


def is_ours(row: Row) -> bool:
    """Whether the row is of a way of raymtl."""
    return bool(row["way"].startswith("raymtl"))


def _about(rows: Sequence[Row]) -> str:
    first = rows[0]
    rates = sorted(row["gflops"] for row in rows)
    libraries = f" with {first['libraries']}" if first["libraries"] else ""
    return (
        f"Measured with torch {first['torch']} on one thread of {first['machine']}{libraries}, "
        f"{first['rounds']} rounds. Products of float32 matrices ran at {rates[0]:.0f} to "
        f"{rates[-1]:.0f} GFLOP/s meanwhile."
    )


def _summary(subjects: Mapping[str, Sequence[Row]]) -> list[str]:
    """The chosen way of raymtl in each subject beside its best one and the fastest other library.

    The best way by hand is one without a graph, among which `train.task_axis: auto` chooses.
    """
    columns = ("subject", "ms", "to the best way by hand", "fastest other", *OTHERS)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, rows in subjects.items():
        base = base_of(rows)
        ours = sorted((row for row in rows if is_ours(row)), key=lambda row: float(row["ms"]))
        others = sorted((row for row in rows if not is_ours(row)), key=lambda row: float(row["ms"]))
        by_hand = next(row for row in ours if "," not in row["way"] or row["base"])
        cells = [name, _milliseconds(base), f"{base['ms'] / by_hand['ms']:.2f}", "", "", ""]
        if others:
            fastest = ours[0]["way"].removeprefix("raymtl ")
            ratio = others[0]["ms"] / ours[0]["ms"]
            cells[3:] = [others[0]["way"], f"{others[0]['ratio']:.2f}", f"{ratio:.2f} ({fastest})"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _table(rows: Sequence[Row]) -> list[str]:
    columns = ["way", f"ms a {rows[0]['unit']}", "time / raymtl's"]
    has_share = any(row["share"] is not None for row in rows)
    has_peak = any(row["peak_mib"] is not None for row in rows)
    if has_share:
        columns.append("of the matrix rate")
    if has_peak:
        columns.append("peak MiB")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        way = f"**{row['way']}**" if row["base"] else row["way"]
        cells = [way, _milliseconds(row), _ratio(row)]
        if has_share:
            cells.append(f"{100 * row['share']:.0f} %")
        if has_peak:
            cells.append("" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _milliseconds(row: Row) -> str:
    if row["ms"] >= 100:
        return f"{row['ms']:,.0f}"
    return f"{row['ms']:.3g}"


def _ratio(row: Row) -> str:
    if row["base"]:
        return "1"
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
