"""Shows how far trainings are, read from the histories that they write."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from raymtl.config import Experiment
from raymtl.distributed import waiting
from raymtl.evaluation.kept import has_ended
from raymtl.reporting.terminal import Row, View
from raymtl.storage import formats
from raymtl.storage.notes import Note
from raymtl.training import left_out
from raymtl.training.heartbeat import StallMonitor

POLL_S = 0.5


@contextmanager
def watched(models: Mapping[Path, Experiment], view: View) -> Iterator[None]:
    """Shows how far the trainings in these folders are, from the histories that they write; says
    which stand still.
    """
    ended = threading.Event()
    stall_monitor = StallMonitor(view.say)

    seen: dict[Path, tuple[int, Row]] = {}
    """The time of each history that was read, and what is shown of it."""
    said: dict[Path, Note | None] = {}
    """What was last said of the builders of each."""
    left_out_said: set[Path] = set()
    """Those of which was said that files were left out."""

    def look() -> None:
        for folder, model in models.items():
            changed = _time_of_change(folder / "history.parquet")
            if folder not in seen or seen[folder][0] != changed:
                seen[folder] = changed, _row(folder, model)
            row = seen[folder][1]
            view.show(folder.name, row)
            note = waiting.read(folder)
            if note != said.get(folder):
                said[folder] = note
                view.say(f"{folder.name}: {note}")
            if model.data.is_streamed and folder not in left_out_said:
                note = left_out.note_of([folder], model.data)
                if note is not None:
                    left_out_said.add(folder)
                    view.say(f"{folder.name}: {note}")
            if row.state != "complete":
                stall_monitor.look(folder.name, folder)

    def follow() -> None:
        while not ended.wait(POLL_S):
            look()

    watcher = threading.Thread(target=follow, daemon=True)
    watcher.start()
    try:
        yield
        look()
    finally:
        ended.set()
        watcher.join()


def _time_of_change(path: Path) -> int:
    """In nanoseconds; 0 where there is no such file, or it is out of reach."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _row(folder: Path, model: Experiment) -> Row:
    """How far the training in a folder is."""
    history = formats.read_rows(folder / "history.parquet")
    scores = [row["val.score"] for row in history if row.get("val.score") is not None]
    step, steps, state, score = 0, model.train.steps, "waiting", ""
    if history:
        step, state = history[-1]["step"], "running"
    if has_ended(model.train, history):
        state = "complete"
    if scores:
        score = f"val.score {scores[-1]:.4f}"
    return Row(step, steps, state, score, "")
