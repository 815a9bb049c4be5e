"""Shows how far trainings are, read from the histories that they write."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from raymtl.config import Experiment
from raymtl.reporting.terminal import Row, View
from raymtl.storage import formats
from raymtl.training.heartbeat import StallMonitor

POLL_S = 0.5


@contextmanager
def watched(models: Mapping[Path, Experiment], view: View) -> Iterator[None]:
    """Shows how far the trainings in these folders are, from the histories that they write; says
    which stand still.
    """
    ended = threading.Event()
    stall_monitor = StallMonitor(view.say)

    def look() -> None:
        for folder, model in models.items():
            history = formats.read_rows(folder / "history.parquet")
            scores = [row["val.score"] for row in history if row.get("val.score") is not None]
            step, steps, state, score = 0, model.train.steps, "waiting", ""
            if history:
                step, state = history[-1]["step"], "running"
            if step == steps:
                state = "complete"
            if scores:
                score = f"val.score {scores[-1]:.4f}"
            view.show(folder.name, Row(step, steps, state, score, ""))
            if state != "complete":
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
