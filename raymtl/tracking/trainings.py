"""The trainings whose records stand in a run folder."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from raymtl.schema.names import as_values
from raymtl.storage import formats
from raymtl.storage.yaml_text import read_yaml

SEARCHED = "trials.parquet"
FOUND = "fitted"
"""The key of what was found in the files, which is no hyperparameter."""


class Training(NamedTuple):
    """One training of a run: the best model's, a baseline's or a trial's."""

    name: str
    """Its folder below the run, such as `best` or `trials/0003`."""
    folder: Path

    def values(self) -> dict[str, Any]:
        """Dotted name -> value of its configuration."""
        content = read_yaml((self.folder / "config.yaml").read_text())
        if not isinstance(content, Mapping):
            return {}
        pairs = as_values(content)
        return {name: value for name, value in pairs if FOUND not in name.split(".")}

    def rows(self) -> list[dict[str, Any]]:
        """The records of its steps so far, in their order."""
        return formats.read_rows(self.folder / "history.parquet")

    def scores(self) -> dict[str, float]:
        """Dotted name -> score on held-out examples, once it has been scored."""
        path = self.folder / "metrics.json"
        if not path.exists():
            return {}
        metrics = formats.read_json(path)
        found = {}
        for task, scores in metrics["tasks"].items():
            for name, score in scores.items():
                value = score["after"]["mean"]
                if value is not None:
                    found[f"{metrics['split']}.{task}.{name}"] = float(value)
        return found

    def state(self, trials: Mapping[str, str]) -> str:
        """`running`, `complete`, `pruned` or `failed`."""
        if self.name in trials:
            return trials[self.name]
        if (self.folder / "metrics.json").exists():
            return "complete"
        return "running"


def trainings(run: Path) -> Iterator[Training]:
    """Those that have begun, trials first."""
    parents = (run / "trials", run, run / "baselines")
    for parent in parents:
        for folder in _folders(parent):
            name = folder.relative_to(run).as_posix()
            is_model = parent != run or name == "best"
            if is_model and (folder / "config.yaml").exists():
                yield Training(name, folder)


def states_of_trials(run: Path) -> dict[str, str]:
    """Name -> state of each trial that the table lists."""
    path = run / SEARCHED
    if not path.exists():
        return {}
    rows = formats.read_rows(path)
    return {f"trials/{row['number']:04d}": row["state"] for row in rows}


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
