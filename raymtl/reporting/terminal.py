"""What a person sees while something runs: one live view on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from raymtl.reporting.console import plain_console
from raymtl.schema.distributions import searched_values

LINES_EVERY_S = 10  # of a training that runs, where there is no terminal


def described(row: Mapping[str, Any], searched: Iterable[str]) -> str:
    """The searched values of a trial in one line, with as many digits as a person wants to read."""
    words = []
    for key, value in searched_values(searched, row).items():
        if isinstance(value, float):
            words.append(f"{key}={value:.3g}")
        else:
            words.append(f"{key}={value}")
    return " ".join(words)


class Row(NamedTuple):
    """One training: how far it is and what it last scored."""

    step: int
    steps: int
    state: str
    score: str
    details: str


class View:
    """A table of trainings, redrawn in place; on a pipe one line whenever a training ends or ten
    seconds passed.

    It writes to standard error, so that `--json` output stays clean.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.console = plain_console(stderr=True)
        self.rows: dict[str, Row] = {}
        self._printed: dict[str, float] = {}
        self._live = Live(console=self.console, get_renderable=self._table, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def say(self, line: str) -> None:
        """One sentence that stays."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show(self, name: str, row: Row) -> None:
        """The newest state of a training."""
        before, self.rows[name] = self.rows.get(name), row
        if self.console.is_terminal:
            return
        changed = before is None or before.state != row.state
        if row == before or (
            not changed and time.monotonic() - self._printed[name] < LINES_EVERY_S
        ):
            return
        self._printed[name] = time.monotonic()
        line = f"{name}: {row.state}, step {row.step} of {row.steps}, {row.score} {row.details}"
        self.say(line.rstrip(" ,"))

    def _table(self) -> Table:
        table = Table(title=self.title, title_justify="left", box=None, pad_edge=False)
        for column in ("", "state", "step", "", "score", ""):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for name, row in list(self.rows.items())[-30:]:
            bar = ProgressBar(total=row.steps, completed=row.step, width=12)
            table.add_row(name, row.state, f"{row.step}/{row.steps}", bar, row.score, row.details)
        return table
