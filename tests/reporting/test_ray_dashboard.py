"""What Ray's dashboard is told of a search: every trial by name, with its values and how it ended; on the real Ray."""

import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from raymtl import run_folder
from raymtl.cluster.capacity import Plan
from raymtl.config import Experiment, parse
from raymtl.data import Digits
from raymtl.distributed.carried import carry
from raymtl.pipeline.search import run_search, trial_rows
from raymtl.reporting.ray_dashboard.dashboard import Dashboard
from raymtl.reporting.ray_dashboard.task_rows import Rows
from raymtl.reporting.terminal import View, described
from raymtl.storage import formats
from raymtl.storage.fence import claim
from tests.distributed.local import local_ray

ray = pytest.importorskip("ray")

ENDS = {"complete", "pruned", "failed"}
CHOSEN = parse(
    {
        "name": "shown",
        "data": {"name": "digits", "shots": 1, "queries": 1},
        "encoder": {"name": "mlp", "hidden": [16]},
        "learner": {"name": "maml", "inner_lr": 0.05, "inner_steps": 1},
        "train": {"steps": 20, "meta_batch": 3, "task_axis": "vmap", "eval_every": 5},
        "evaluate": {"val_episodes": 4, "test_episodes": 6},
        "tune": {
            "trials": 6,
            "asha": {"grace": 5, "reduction": 2},
            "sampler": {"startup_trials": 6},
        },
        "search": {
            "learner.inner_lr": {"choice": [0.05, 1e30]},  # one that learns, and one that diverges
            "weighting.weights": {"simplex": ["left", "right", "sum"]},
        },
    }
)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this machine with its dashboard, collecting metrics every second."""
    often = {"metrics_report_interval_ms": 1000}
    with local_ray(num_cpus=2, include_dashboard=True, _system_config=often):
        yield


class Searched(NamedTuple):
    rows: list[dict[str, Any]]
    said: list[str]


def begun(folder: Path) -> Path:
    folder.mkdir(parents=True)
    formats.write_json(folder / "environment.json", run_folder.environment(CHOSEN, "tune"))
    return folder


def search(experiment: Experiment, folder: Path) -> Searched:
    """One trial at a time, so that the same trials are stopped early in every search."""
    said: list[str] = []
    board = Dashboard(folder, said.append)
    try:
        plan = Plan(experiment.tune.trials, 1, 1, 1.0, 0.0)
        study = run_search(experiment, claim(folder), Digits().load(), plan, View("test"), board)
    finally:
        board.close()
    return Searched(trial_rows(study), said)


@pytest.fixture(scope="module")
def searched(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    found = search(CHOSEN, begun(tmp_path_factory.mktemp("board") / "shown"))
    assert {row["state"] for row in found.rows} == ENDS
    return found


def tasks(run: str, until: Callable[[list[Any]], bool]) -> list[Any]:
    """Those of the dashboard's table of tasks that belong to the run, once `until` holds of them."""
    from ray.util.state import list_tasks

    stop = time.monotonic() + 120
    while True:
        found = [
            task
            for task in list_tasks(ray.get_runtime_context().gcs_address, limit=10_000, detail=True)
            if task.name.startswith(f"{run}/")
        ]
        if until(found):
            return found
        assert time.monotonic() < stop, [(task.name, task.state) for task in found]
        time.sleep(0.5)


def values_of(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key.startswith(("learner.", "weighting."))}


@pytest.mark.slow
def test_every_trial_has_rows_of_tasks(searched: Searched) -> None:
    """One for its start and one for its end."""

    def whole(found: list[Any]) -> bool:
        return len(found) == 2 * len(searched.rows) and all(
            task.state in ("FINISHED", "FAILED") for task in found
        )

    shown = {task.name: task for task in tasks("shown", whole)}
    for row in searched.rows:
        name = f"shown/trial-{row['number']:04d}"
        values = values_of(row)
        (started,) = (
            task for text, task in shown.items() if text == f"{name} {described(values, values)}"
        )
        assert started.state == ("FAILED" if row["state"] == "failed" else "FINISHED")
        (ended,) = (
            task for text, task in shown.items() if text.startswith(f"{name} {row['state']} ")
        )
        assert ended.state == "FINISHED"
        if row["state"] == "failed":
            assert row["reason"] in started.error_message
        else:
            assert ended.name.endswith(
                f"at step {row['step']} of 20 val.score {row['val.score']:.4f}"
            )


def trial_that_stays(folder: str) -> None:
    """Runs a trial, as Ray Tune does, in a process that stays: what it sets goes with it."""
    from raymtl.pipeline.search import trial

    pytest.MonkeyPatch().setattr(trial, "tune", SimpleNamespace(report=lambda metrics: None))
    values = {"number": 3, "learner.inner_lr": 0.05}
    trial.run_trial(values, carry(CHOSEN), folder, Digits().load(), Plan(6, 1, 1, 1.0, 0.0))
    time.sleep(300)


@pytest.mark.slow
def test_a_machines_metrics_hold_its_trials_scores(tmp_path: Path) -> None:
    runs_on = ray.remote(num_cpus=1)(trial_that_stays).remote(str(tmp_path / "measured"))
    wanted = {
        ("step", ""): 20.0,
        **{
            ("score", f"val.{task}.{of}"): None
            for task, of in (("left", "accuracy"), ("sum", "r2"))
        },
        ("score", "val.score"): None,
    }
    found: dict[tuple[str, str], float] = {}
    line = re.compile(r'ray_raymtl_(\w+)\{.*run="measured/trial-0003"(?:,score="(.+?)")?\} (\S+)')
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    stop = time.monotonic() + 300
    while (
        not (wanted.keys() <= found.keys() and found["step", ""] == 20) and time.monotonic() < stop
    ):
        text = urllib.request.urlopen(url, timeout=120).read().decode()
        found = {(name, score): float(value) for name, score, value in line.findall(text)}
        time.sleep(0.5)
    ray.cancel(runs_on, force=True)
    last = formats.read_rows(tmp_path / "measured" / "trials" / "0003" / "history.parquet")[-1]
    for (name, score), value in wanted.items():
        assert found[name, score] == pytest.approx(last[score] if value is None else value)


@pytest.mark.slow
def test_a_broken_dashboard_changes_no_search(
    searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once. The first trials of a search do not depend on how many follow."""

    def start(self: Rows, name: str, details: str) -> None:
        raise RuntimeError("no such task")

    monkeypatch.setattr(Rows, "start", start)
    hidden = search(CHOSEN.override({"tune.trials": 3}), begun(tmp_path / "hidden"))
    (sentence,) = hidden.said
    assert sentence.startswith("Ray's dashboard shows no more trials of this run (RuntimeError")
    for one, two in zip(searched.rows[:3], hidden.rows, strict=True):
        assert {**one, "seconds": None} == {**two, "seconds": None}


def test_killing_the_rows_process_harms_nothing(
    tmp_path: Path,
) -> None:
    """It is said once."""
    said: list[str] = []
    board = Dashboard(begun(tmp_path / "lost"), said.append)
    board.on_trial_start("trial-0000", {"train.lr": 0.1})
    board._try(list, wait_s=10)
    assert board.rows is not None
    ray.kill(board.rows.shown)
    for number in range(3):
        board.on_trial_end(f"trial-{number:04d}", "complete")
        board.on_trial_start(f"trial-{number + 1:04d}", {})
        board._try(list, wait_s=5)
    board.close()
    assert len(said) == 1
