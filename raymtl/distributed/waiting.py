"""Decides whether builders should build the episodes that the workers wait for."""

import math
import time
from pathlib import Path
from typing import NamedTuple

import torch

from raymtl.step.workers import Workers
from raymtl.storage import fence, formats
from raymtl.storage.fence import Attempt
from raymtl.storage.notes import Note

LOOK_STEPS = 25
"""After so many steps the workers look how long they waited."""
LOOK_S = 20.0
"""The time, at least, over which they look."""
MOST_WAIT = 0.05
"""The share of the time that workers may wait before builders are asked for."""

DECISION = "builders.json"
"""The file of a model folder that says what was decided."""


class Waited(NamedTuple):
    """How long the workers waited, a mean over all of them."""

    share: float
    """Of the time, 0 to 1."""
    seconds: float
    """The time in which they did."""


class WaitClock:
    """Measures how long this worker waits for its episodes."""

    def __init__(self, workers: Workers, device: torch.device) -> None:
        self.workers, self.device = workers, device
        self.restart()

    def restart(self) -> None:
        """Measures from now on."""
        self.waited_s, self.since = 0.0, time.perf_counter()

    def look(self) -> Waited:
        """Of all workers, which call this after the same step, so that all get the same answer."""
        measured = torch.tensor(
            [self.waited_s, time.perf_counter() - self.since],
            dtype=torch.float64,
            device=self.device,
        )
        waited_s, seconds = self.workers.sum(measured).tolist()
        return Waited(waited_s / seconds, seconds / self.workers.size)


def shared_by(num_workers: int, lanes: int) -> list[int]:
    """How many builders can share the lanes of streamed files, in ascending order.

    Each builds whole lanes of whole workers, or a worker gets the lanes of several: then none reads
    what another reads.
    """
    return [
        number
        for number in range(1, lanes + 1)
        if lanes % number == 0 and (num_workers % number == 0 or number % num_workers == 0)
    ]


def num_builders(waited: Waited, num_workers: int, num_free: int, lanes: int | None = None) -> int:
    """How many builders to ask for, 0 where there are too few free CPUs, or too few `lanes` of
    streamed files.

    While a share w of a step is spent waiting, a worker builds all the time and computes for 1 - w
    of it. So num_workers / (1 - w) builders keep up; one more makes up for delays. Not more than
    there are workers would be slower than they are.
    """
    enough = math.ceil(num_workers / max(1 - waited.share, 0.01)) + 1
    builders = min(enough, num_free)
    if lanes is not None:
        possible = [number for number in shared_by(num_workers, lanes) if number <= num_free]
        builders = max(possible, default=0)
        builders = next((number for number in possible if number >= enough), builders)
    if builders <= num_workers:
        return 0
    return builders


def explain(
    waited: Waited, builders: int, num_workers: int, num_free: int, lanes: int | None = None
) -> Note:
    """The note on what was decided for workers that wait too long."""
    percent = f"{100 * waited.share:.0f} % of the time"
    key = "data.builders"
    if builders:
        text = f"built by {builders} builders, since the workers waited for them {percent}"
    elif lanes is not None and shared_by(num_workers, lanes)[-1] <= num_workers:
        key = "data.lanes"
        text = (
            f"built by the workers, which wait for them {percent}: builders of streamed files "
            f"would need lanes for more than {num_workers} of them, such as {2 * num_workers} "
            f"lanes, got {lanes}"
        )
    else:
        text = (
            f"built by the workers, which wait for them {percent}: builders would need more than "
            f"{num_workers} free CPUs, got {num_free}"
        )
    return Note(place="episodes", text=text, key=key)


def explain_fewer(asked: int, builders: int, num_workers: int, lanes: int) -> Note:
    """The note on builders that were asked for and would read what others read."""
    text = (
        f"built by {builders} of {asked} builders, since more would read the same streamed files "
        f"again: {lanes} lanes on {num_workers} workers"
    )
    return Note(place="episodes", text=text, key="data.lanes")


def save(folder: Path, note: Note, builders: int, step: int) -> None:
    """Writes what was decided after a step into the model folder."""
    attempt = Attempt(folder, fence.newest(folder))
    about = {"builders": builders, "from_step": step, "note": note.model_dump()}
    formats.write_json(folder / DECISION, about, attempt.publish)


def read(folder: Path) -> Note | None:
    """The note on what was last decided in a model folder; None where nothing was."""
    path = folder / DECISION
    if not path.exists():
        return None
    return Note(**formats.read_json(path)["note"])
