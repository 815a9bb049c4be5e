"""A bar of rows on standard error, for what takes longer than a moment."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from raymtl.reporting.console import plain_console

SILENT_S = 2.0
"""Progress is shown of what takes longer."""


@contextmanager
def rows_progress() -> Iterator[Callable[[int, int], None]]:
    """Gives what is to be called with the number of rows that are done, and that of all."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    progress = Progress(*columns, console=plain_console(stderr=True))
    bar = progress.add_task("rows")
    begin = time.monotonic()
    is_shown = False

    def report(done: int, rows: int) -> None:
        nonlocal is_shown
        progress.update(bar, completed=done, total=rows)
        if not is_shown and time.monotonic() - begin > SILENT_S:
            is_shown = True
            progress.start()

    try:
        yield report
    finally:
        if is_shown:
            progress.stop()
