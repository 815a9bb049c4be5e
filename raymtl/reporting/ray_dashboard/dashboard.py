"""The trainings of a run, for whoever opens the dashboard; and no training depends on it."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from raymtl.reporting.ray_dashboard.task_rows import EndedError, Rows
from raymtl.reporting.terminal import described

LEAVE_S = 5.0
"""How long the end of a run waits for the dashboard to have it all."""


class Dashboard:
    """Shows every training under its name, with its searched values and how it ended.

    Its calls take milliseconds. Should Ray refuse what is shown, that is said once, and nothing
    more is shown.
    """

    def __init__(self, run: Path, say: Callable[[str], None]) -> None:
        self.run, self.say = run, say
        self.shows = True
        self.pending: list[ray.ObjectRef[None]] = []
        self.open: set[str] = set()
        self.rows: Rows | None = None

    def on_trial_start(self, name: str, values: Mapping[str, Any]) -> None:
        """A training begins, whose dotted values these are."""

        def show() -> list[ray.ObjectRef[None]]:
            if self.rows is None:
                self.rows = Rows(self.run.name)
            self.rows.start(name, described(values, values))
            self.open.add(name)
            return []

        self._try(show)

    def on_trial_end(self, name: str, state: str, outcome: str = "") -> None:
        """A training ended: `complete`, `pruned`, `failed`, `interrupted`, or `restarting` to be
        started again.
        """

        def show() -> list[ray.ObjectRef[None]]:
            if name not in self.open or self.rows is None:
                return []
            self.open.remove(name)
            failed = state in ("failed", "restarting")
            return self.rows.end(name, state, outcome, failed=failed)

        self._try(show)

    def close(self) -> None:
        """Ends what was interrupted, and lets the rows end with their process."""
        for name in sorted(self.open):
            self.on_trial_end(name, "interrupted")
        self._try(list, wait_s=LEAVE_S)

    def _try(self, show: Callable[[], "list[ray.ObjectRef[None]]"], wait_s: float = 0.0) -> None:
        if not self.shows:
            return
        try:
            self.pending += show()
            if self.pending:
                done, self.pending = ray.wait(
                    self.pending, num_returns=len(self.pending), timeout=wait_s
                )
                for ref in done:
                    with suppress(EndedError):  # that of a row which shows a failure
                        ray.get(ref)
        except Exception as error:  # whatever Ray raises: a search must not depend on a page
            self.shows = False
            reason = str(error).strip().partition("\n")[0]
            self.say(
                f"Ray's dashboard shows no more trials of this run ({type(error).__name__}: "
                f"{reason})."
            )
