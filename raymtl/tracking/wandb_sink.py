"""Weights & Biases: a run for each training, in a group that is called as the whole."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import wandb

from raymtl.tracking.tracker import About


class WandbSink:
    """Writes to the project $WANDB_PROJECT (`raymtl`); with $WANDB_MODE=offline to files."""

    name = "wandb"

    def __init__(self) -> None:
        self.project = os.environ.get("WANDB_PROJECT", "raymtl")
        self._open: dict[str, Any] = {}
        self._group = ""

    @property
    def place(self) -> str:
        """The service and the project."""
        mode = os.environ.get("WANDB_MODE", "online")
        return f"{os.environ.get('WANDB_BASE_URL', 'https://api.wandb.ai')} {mode} {self.project}"

    def begin(self, about: About, parent: str | None) -> str:
        """The run with this key. The whole has none of its own: it is the group of the others."""
        if parent is None:
            return about.name
        self._run(about.key, parent, about.name, dict(about.values))
        return f"{parent}/{about.name}/{about.key}"

    def last_step(self, run_id: str) -> int | None:
        """Unknown: without a network nobody can be asked."""
        return None

    def log(self, run_id: str, rows: Sequence[Mapping[str, float]]) -> None:
        """Each record with its step."""
        run = self._named(run_id)
        for row in rows:
            run.log(dict(row), step=int(row["step"]))

    def end(self, run_id: str, state: str, scores: Mapping[str, float]) -> None:
        """The scores are the summary."""
        if run_id.count("/") == 0:
            return
        run = self._named(run_id)
        run.summary.update({**scores, "state": state})
        run.finish(exit_code=int(state == "failed"))
        self._open.pop(run_id.rpartition("/")[2])

    def close(self) -> None:
        """Ends what is open; a later one goes on with it."""
        for run in self._open.values():
            run.finish()
        self._open = {}

    def _named(self, run_id: str) -> Any:
        group, name = run_id.split("/", 1)
        name, _, key = name.rpartition("/")
        return self._run(key, group, name, None)

    def _run(self, key: str, group: str, name: str, values: dict[str, Any] | None) -> Any:
        if key not in self._open:
            self._open[key] = wandb.init(
                project=self.project,
                id=key,
                group=group,
                name=f"{group}/{name}",
                config=values,
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off", disable_git=True),
            )
        return self._open[key]
