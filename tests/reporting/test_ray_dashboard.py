"""What Ray's dashboard is told of a search: every trial by name, with its values and how it ended; on the real Ray."""

import json
import os
import re
import sys
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
from raymtl.reporting.ray_dashboard.dashboard import Dashboard
from raymtl.reporting.terminal import View, described
from raymtl.storage import formats
from raymtl.storage.fence import claim
from raymtl.tune import run_search, trial_rows

ray = pytest.importorskip("ray")

ENDS = {"complete": "FINISHED", "pruned": "ABORTED", "failed": "ERRORED"}
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
    before = os.environ.pop("RAY_ADDRESS", None)
    ray.init(
        address="local", num_cpus=2, include_dashboard=True, log_to_driver=False, logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}},
        _system_config={"metrics_report_interval_ms": 1000},
    )  # fmt: skip
    yield
    ray.shutdown()
    if before is not None:
        os.environ["RAY_ADDRESS"] = before


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
    board = Dashboard(folder, 1, said.append)
    try:
        plan = Plan(experiment.tune.trials, 1, 1, 1.0, 0.0)
        study = run_search(experiment, claim(folder), Digits().load(), plan, View("test"), board)
    finally:
        board.close()
    return Searched(trial_rows(study), said)


@pytest.fixture(scope="module")
def searched(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    found = search(CHOSEN, begun(tmp_path_factory.mktemp("board") / "shown"))
    assert {row["state"] for row in found.rows} == set(ENDS)
    return found


def train_runs() -> dict[str, Any]:
    """Name -> run of Ray Train."""
    return {run["name"]: run for run in all_train_runs()}


def all_train_runs() -> list[dict[str, Any]]:
    """What the dashboard's API tells."""
    from ray._private.authentication.http_token_authentication import (
        get_auth_headers_if_auth_enabled,
    )
    from ray._private.worker import get_dashboard_url

    request = urllib.request.Request(f"http://{get_dashboard_url()}/api/train/v2/runs/v1")
    for key, value in get_auth_headers_if_auth_enabled({}).items():
        request.add_header(key, value)
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)["train_runs"]
        return found


def tasks(run: str, until: Callable[[list[Any]], bool]) -> list[Any]:
    """Those of the dashboard's table of tasks that belong to the run, once `until` holds of them."""
    from ray.util.state import list_tasks

    stop = time.monotonic() + 30
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


def test_every_trial_is_a_run_of_ray_train_with_its_values_and_its_end(searched: Searched) -> None:
    found = {name: run for name, run in train_runs().items() if name.startswith("shown/")}
    assert sorted(found) == [f"shown/trial-{row['number']:04d}" for row in searched.rows]
    for row in searched.rows:
        run = found[f"shown/trial-{row['number']:04d}"]
        assert run["run_settings"]["train_loop_config"] == values_of(row)
        assert run["status"] == ENDS[row["state"]]
        assert run["end_time_ns"] > run["start_time_ns"]
        (attempt,) = run["attempts"]
        (worker,) = attempt["workers"]
        assert attempt["status"] == run["status"]
        assert worker["actor_id"] == run["controller_actor_id"]
        known = ray._private.state.actors(worker["actor_id"])
        assert known["ActorClassName"].endswith("ImplicitFunc")  # as Ray Tune calls it
        assert (worker["pid"], worker["node_id"]) == (known["Pid"], ray.nodes()[0]["NodeID"])
        if row["state"] == "failed":
            assert run["status_detail"] == row["reason"]
        else:
            assert (
                run["status_detail"]
                == f"at step {row['step']} of 20 val.score {row['val.score']:.4f}"
            )
    assert searched.said == []


def test_every_trial_is_a_row_of_the_table_of_tasks_and_its_end_another(searched: Searched) -> None:
    def whole(found: list[Any]) -> bool:
        return len(found) == 2 * len(searched.rows) and all(
            task.state in ("FINISHED", "FAILED") for task in found
        )

    shown = {task.name: task for task in tasks("shown", whole)}
    for row in searched.rows:
        name = f"shown/trial-{row['number']:04d}"
        values = values_of(row)
        (started,) = (
            task
            for text, task in shown.items()
            if text.startswith(f"{name} {described(values, values)} (pid")
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
    from raymtl.tune import trial

    trial.tune = SimpleNamespace(report=lambda metrics: None)  # type: ignore[assignment]
    values = {"number": 3, "learner.inner_lr": 0.05}
    trial.run_trial(
        values, CHOSEN.model_dump(mode="json"), folder, Digits().load(), Plan(6, 1, 1, 1.0, 0.0)
    )
    time.sleep(300)


def test_steps_and_scores_of_a_trial_are_among_the_metrics_of_its_machine(tmp_path: Path) -> None:
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
    stop = time.monotonic() + 90
    while (
        not (wanted.keys() <= found.keys() and found["step", ""] == 20) and time.monotonic() < stop
    ):
        text = urllib.request.urlopen(url, timeout=30).read().decode()
        found = {(name, score): float(value) for name, score, value in line.findall(text)}
        time.sleep(0.5)
    ray.cancel(runs_on, force=True)
    last = formats.read_rows(tmp_path / "measured" / "trials" / "0003" / "history.parquet")[-1]
    for (name, score), value in wanted.items():
        assert found[name, score] == pytest.approx(last[score] if value is None else value)


def test_a_search_that_cannot_be_shown_is_the_same_search_and_says_so_once(
    searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        sys.modules, "raymtl.reporting.ray_dashboard.train_state", None
    )  # as in a Ray that has these modules elsewhere
    hidden = search(CHOSEN, begun(tmp_path / "hidden"))
    (sentence,) = hidden.said
    assert sentence.startswith(
        "Ray's dashboard shows no more trials of this run (ModuleNotFoundError"
    )
    for one, two in zip(searched.rows, hidden.rows, strict=True):
        assert {**one, "seconds": None} == {**two, "seconds": None}


class Trial:
    """Stands for an actor of Ray Tune."""


@pytest.fixture(scope="module")
def actor(cluster: None) -> Any:
    return started()


def started() -> Any:
    made = ray.remote(num_cpus=0)(Trial).remote()
    ray.get(made.__ray_ready__.remote())
    return made


def test_a_trial_that_starts_again_is_an_attempt_more_and_one_left_running_is_aborted(
    tmp_path: Path, actor: Any
) -> None:
    board = Dashboard(begun(tmp_path / "again"), 3, pytest.fail)
    board.started("trial-0000", {"train.lr": 0.1}, actor, {"CPU": 1.0})
    board.ended("trial-0000", "restarting", "the process died")
    board._try(list, wait_s=10)
    assert train_runs()["again/trial-0000"]["status"] == "RESTARTING"
    board.started("trial-0000", {"train.lr": 0.1}, actor, {"CPU": 1.0})
    board.close()
    run = train_runs()["again/trial-0000"]
    assert run["status"] == "ABORTED"
    assert [attempt["status"] for attempt in run["attempts"]] == ["ERRORED", "ABORTED"]


def test_a_trial_whose_actor_dies_with_its_driver_does_not_stay_running(tmp_path: Path) -> None:
    actor = started()
    board = Dashboard(begun(tmp_path / "killed"), 3, pytest.fail)
    board.started("trial-0000", {"train.lr": 0.1}, actor, {"CPU": 1.0})
    board._try(list, wait_s=10)
    assert train_runs()["killed/trial-0000"]["status"] == "RUNNING"
    ray.kill(actor)
    stop = time.monotonic() + 30
    while train_runs()["killed/trial-0000"]["status"] == "RUNNING" and time.monotonic() < stop:
        time.sleep(0.2)
    assert train_runs()["killed/trial-0000"]["status"] == "ABORTED"


def test_two_runs_of_one_name_are_two(tmp_path: Path, actor: Any) -> None:
    for place in "ab":
        board = Dashboard(begun(tmp_path / place / "twice"), 3, pytest.fail)
        board.started("trial-0000", {}, actor, {"CPU": 1.0})
        board.close()
    found = [run for run in all_train_runs() if run["name"] == "twice/trial-0000"]
    assert [len(run["attempts"]) for run in found] == [1, 1]


def test_without_state_tracking_there_are_the_rows_alone(
    tmp_path: Path, actor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    board = Dashboard(begun(tmp_path / "untracked"), 3, pytest.fail)
    board.started("trial-0000", {"train.lr": 0.1}, actor, {"CPU": 1.0})
    board.ended("trial-0000", "complete", "at step 20 of 20")
    board.close()
    names = {task.name for task in tasks("untracked", lambda found: len(found) == 2)}
    assert names == {
        "untracked/trial-0000 train.lr=0.1",
        "untracked/trial-0000 complete at step 20 of 20",
    }
    assert not any(name.startswith("untracked/") for name in train_runs())


def test_killed_the_process_of_the_rows_harms_nothing_and_is_said_once(
    tmp_path: Path, actor: Any
) -> None:
    said: list[str] = []
    board = Dashboard(begun(tmp_path / "lost"), 3, said.append)
    board.started("trial-0000", {"train.lr": 0.1}, actor, {"CPU": 1.0})
    board._try(list, wait_s=10)
    assert board.rows is not None
    ray.kill(board.rows.shown)
    for number in range(3):
        board.ended(f"trial-{number:04d}", "complete")
        board.started(f"trial-{number + 1:04d}", {}, actor, {"CPU": 1.0})
        board._try(list, wait_s=5)
    board.close()
    assert len(said) == 1
