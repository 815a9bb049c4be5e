"""Tracks a run while it goes on. No training waits for a tracker, and none stops for one."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from raymtl.storage.notes import Note
from raymtl.tracking.sinks import sink
from raymtl.tracking.tracker import Sink, Tracker

LOOK_S = 10.0
"""How often it is looked for new steps."""
LAST_S = 60.0
"""How long the end of a run waits for the last of them."""
Announce = Callable[[Sequence[Note]], None]


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError where the package of a tracker is missing."""
    for name in names:
        sink(name)


@contextmanager
def tracked(run: Path, names: Sequence[str], announce: Announce) -> Iterator[None]:
    """Gives the trackers of these names what the run folder holds, while the `with` block runs.

    A tracker that cannot be reached is a note, and is tried again.
    """
    threads = [_Thread(Tracker(run, sink(name)), announce) for name in names]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.over.set()
        for thread in threads:
            thread.join(LAST_S)
            thread.tell_of_the_rest()


class _Thread(threading.Thread):
    """Looks for new steps, now and then."""

    def __init__(self, tracker: Tracker, announce: Announce) -> None:
        super().__init__(daemon=True, name=f"track-{tracker.sink.name}")
        self.tracker, self.announce = tracker, announce
        self.over = threading.Event()
        self.is_complete = False
        self._has_told = False

    @property
    def sink(self) -> Sink:
        """The tracker that gets them."""
        return self.tracker.sink

    def run(self) -> None:
        """Goes on until the run is over, and then looks a last time."""
        while not self.over.wait(LOOK_S):
            self._update()
        self.is_complete = self._update()

    def _update(self) -> bool:
        """Whether all was sent."""
        try:
            self.tracker.update()
            if self.over.is_set():
                self.sink.close()
        except Exception as error:  # whatever a tracker raises is no reason to stop a training
            self._tell(f"it cannot be reached ({type(error).__name__}: {str(error)[:120]})")
            return False
        return True

    def _tell(self, text: str) -> None:
        if not self._has_told:
            self._has_told = True
            self.announce([Note(place=self.sink.name, text=text, key="track")])

    def tell_of_the_rest(self) -> None:
        """Says how to send what could not be sent in time."""
        if not self.is_complete:
            self._has_told = False
            self._tell(
                f"it lacks a part of the run; `raymtl export {self.tracker.run} --to "
                f"{self.sink.name}` sends it"
            )
