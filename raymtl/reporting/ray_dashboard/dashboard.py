"""The trainings of a run, for whoever opens the dashboard; and no training depends on it."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.train.constants import RAY_TRAIN_ENABLE_STATE_TRACKING

from raymtl.reporting.ray_dashboard.task_rows import EndedError, Rows
from raymtl.reporting.terminal import described

if TYPE_CHECKING:
    from raymtl.reporting.ray_dashboard.train_state import TrainRuns

LEAVE_S = 5.0
"""How long the end of a run waits for the dashboard to have it all."""


class Dashboard:
    """Shows every training under its name, with its searched values and how it ended.

    Its calls take milliseconds. Should Ray refuse what is shown, that is said once, and nothing
    more is shown.
    """

    def __init__(self, run: Path, max_failures: int, say: Callable[[str], None]) -> None:
        self.run, self.max_failures, self.say = run, max_failures, say
        self.shows = True
        self.pending: list[ray.ObjectRef[None]] = []
        self.open: set[str] = set()
        self.as_runs: set[str] = set()
        self.rows: Rows | None = None
        self.train_runs: TrainRuns | None = None

    def started(
        self,
        name: str,
        values: Mapping[str, Any],
        actor: ActorHandle | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        """A training begins: `values` are its dotted ones.

        `actor` is given where it runs in that actor alone; what Ray Train runs is known to Ray
        Train already.
        """

        def show() -> list[ray.ObjectRef[None]]:
            if self.rows is None:
                self.rows, self.train_runs = self._made()
            told: list[ray.ObjectRef[None]] = []
            details = described(values, values)
            if actor is not None and self.train_runs is not None:
                told = self.train_runs.start(name, values, actor, resources or {})
                self.as_runs.add(name)
                details = f"{details} ({self.train_runs.place(name)})".lstrip()
            self.rows.start(name, details)
            self.open.add(name)
            return told

        self._try(show)

    def ended(self, name: str, state: str, outcome: str = "") -> None:
        """It ended: `complete`, `pruned`, `failed`, `interrupted`, or `restarting` to be started
        again.
        """

        def show() -> list[ray.ObjectRef[None]]:
            if name not in self.open or self.rows is None:
                return []
            self.open.remove(name)
            told = self.rows.end(name, state, outcome, failed=state in ("failed", "restarting"))
            if name in self.as_runs and self.train_runs is not None:
                self.as_runs.remove(name)
                told += self.train_runs.end(name, state, outcome)
            return told

        self._try(show)

    def close(self) -> None:
        """Ends what was interrupted, and lets the rows end with their process."""
        for name in sorted(self.open):
            self.ended(name, "interrupted")
        self._try(list, wait_s=LEAVE_S)

    def _made(self) -> "tuple[Rows, TrainRuns | None]":
        if os.environ.get(RAY_TRAIN_ENABLE_STATE_TRACKING) != "1":
            return Rows(self.run.name), None
        # Here, where it may fail: another version of Ray may have these private modules elsewhere.
        from raymtl.reporting.ray_dashboard.train_state import TrainRuns

        return Rows(self.run.name), TrainRuns(self.run, self.max_failures)

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
        except (
            Exception
        ) as error:  # of parts of Ray that may do as they like: a search must not depend on a page
            self.shows = False
            reason = str(error).strip().partition("\n")[0]
            self.say(
                f"Ray's dashboard shows no more trials of this run ({type(error).__name__}: "
                f"{reason})."
            )
