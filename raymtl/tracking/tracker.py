"""Gives a tracker what it lacks of a run folder."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from raymtl.storage import formats
from raymtl.tracking.trainings import Training, states_of_trials, trainings

ROWS_AT_ONCE = 500
RUN = ""
"""The name of the whole run among its trainings."""


class About(NamedTuple):
    """What a tracker is told of a run, or of one of its trainings, when it begins."""

    name: str
    """Such as `quickstart`, or `best`."""
    key: str
    """The same whenever the same folder is given, and of no other."""
    values: Mapping[str, Any]
    """Dotted name -> value."""


class Sink(Protocol):
    """A tracker."""

    name: str

    @property
    def place(self) -> str:
        """Where the numbers go: what is known of one place says nothing of another."""
        ...

    def begin(self, about: About, parent: str | None) -> str:
        """Begins a run below another one; returns what the tracker calls it."""
        ...

    def last_step(self, run_id: str) -> int | None:
        """The last step that the tracker has; None where it cannot be asked."""
        ...

    def log(self, run_id: str, rows: Sequence[Mapping[str, float]]) -> None:
        """Takes the records of steps, each with its `step`."""
        ...

    def end(self, run_id: str, state: str, scores: Mapping[str, float]) -> None:
        """Takes the scores of a training that has ended."""
        ...

    def close(self) -> None:
        """Sends what waits."""
        ...


class Tracker:
    """A run folder and a tracker. What was sent stands in the folder, so nothing is sent twice."""

    def __init__(self, run: Path, sink: Sink) -> None:
        self.run, self.sink = run, sink
        self.path = run / "tracked" / f"{sink.name}.json"
        self._asked: set[str] = set()
        """The trainings of which the tracker was asked for its last step."""

    def update(self) -> int:
        """Sends what the tracker lacks; returns the number of steps. Raises what the sink does."""
        if not (self.run / "environment.json").exists():  # as yet
            return 0
        state = self._read()
        sent = 0
        if RUN not in state:
            self._begin(state, RUN, self.run.name, {"command": self._command()})
        trials = states_of_trials(self.run)
        for training in trainings(self.run):
            sent += self._send(state, training, training.state(trials))
        if (self.run / "summary.json").exists() and not state[RUN]["ended"]:
            self.sink.end(state[RUN]["id"], "complete", {})
            state[RUN]["ended"] = True
            self._write(state)
        return sent

    def _send(self, state: dict[str, Any], training: Training, ended_as: str) -> int:
        name = training.name
        if name not in state:
            self._begin(state, name, name, training.values())
        known = state[name]
        if known["ended"]:
            return 0
        if name not in self._asked:
            self._asked.add(name)
            last = self.sink.last_step(known["id"])
            if last is not None:
                known["step"] = max(known["step"], last)
        rows = [row for row in training.rows() if row["step"] > known["step"]]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            self.sink.log(known["id"], [_numbers(row) for row in part])
            known["step"] = part[-1]["step"]
            self._write(state)
        if ended_as != "running":
            self.sink.end(known["id"], ended_as, training.scores())
            known["ended"] = True
            self._write(state)
        return len(rows)

    def _begin(
        self, state: dict[str, Any], name: str, shown: str, values: Mapping[str, Any]
    ) -> None:
        parent = None if name == RUN else state[RUN]["id"]
        about = About(shown, self._key(name), values)
        state[name] = {"id": self.sink.begin(about, parent), "step": 0, "ended": False}
        self._write(state)

    def _key(self, name: str) -> str:
        environment = (self.run / "environment.json").read_bytes()
        return hashlib.sha256(environment + name.encode()).hexdigest()[:20]

    def _command(self) -> str:
        return str(formats.read_json(self.run / "environment.json")["run"])

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        places: dict[str, Any] = formats.read_json(self.path)
        known: dict[str, Any] = places.get(self.sink.place, {})
        return known

    def _write(self, state: Mapping[str, Any]) -> None:
        places = formats.read_json(self.path) if self.path.exists() else {}
        self.path.parent.mkdir(exist_ok=True)
        formats.write_json(self.path, {**places, self.sink.place: state})


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What of a record is a number."""
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
