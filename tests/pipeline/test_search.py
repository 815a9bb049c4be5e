"""The search: what Optuna is told, how it resumes, how much runs at a time; and real Ray, killed."""

import contextlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import optuna
import pytest
import yaml

from raymtl.cli import main
from raymtl.cluster.capacity import Capacity, Plan
from raymtl.config import Experiment, load, parse
from raymtl.data.base import Arrays
from raymtl.distributed.carried import carry
from raymtl.learners import MAML
from raymtl.pipeline.search import Search, open_study, reports, scheduler, trial_rows, winner
from raymtl.storage import formats
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import UserError
from tests.conftest import experiment
from tests.narrowing import checked
from tests.training.runs import run as train

SPACE = {
    "learner.name": {"choice": ["maml", "reptile"]},
    "learner.inner_lr": {"log_uniform": [0.001, 0.5]},
    "weighting.weights": {"simplex": ["left", "right", "sum"]},
    "train.lr": {"log_uniform": [0.0001, 0.1]},
}


def searching(**values: Any) -> Experiment:
    tune = {
        "trials": 14,
        "asha": {"grace": 10, "reduction": 2},
        "sampler": {"startup_trials": 4},
    }
    return parse(
        {
            "name": "search",
            "search": SPACE,
            "train": {"steps": 40, "eval_every": 10},
            "tune": tune | values,
        }
    )


def made_up(values: dict[str, Any], step: int) -> float:
    """A score that depends on the values alone, as a deterministic training's does."""
    rate, weight = float(values["learner.inner_lr"]), float(values["weighting.weights.sum"])
    return step * (1 - abs(math.log10(rate) + 1.5)) - 5 * weight


class FakeTune:
    """Drives a Search and its scheduler as Ray Tune does, one trial at a time, without any process."""

    def __init__(self, experiment: Experiment, run: Path) -> None:
        self.experiment, self.search = experiment, Search(experiment, run)
        self.scheduler: Any = scheduler(experiment, self.search.study)

    def run(self, stop_after: int | None = None, die_within: bool = False) -> None:
        done = 0
        while True:
            name = f"t{time.monotonic_ns()}"
            config = self.search.suggest(name)
            if config == Search.FINISHED:
                return
            trial = SimpleNamespace(trial_id=name)
            self.scheduler.on_trial_add(None, trial)
            for step in range(10, self.experiment.train.steps + 1, 10):
                result = {
                    "step": step,
                    "val.score": made_up(config, step),
                    "num_parameters": 3,
                    "seconds": 1.0,
                }
                stopped = self.scheduler.on_trial_result(None, trial, result) == "STOP"
                if done == stop_after and die_within:
                    self.search.on_trial_result(name, result)
                    return
                if stopped or step == self.experiment.train.steps:
                    self.search.on_trial_complete(name, result)
                    break
                self.search.on_trial_result(name, result)
            done += 1
            if done == stop_after and not die_within:
                return


def told(run: Path, experiment: Experiment) -> list[dict[str, Any]]:
    return trial_rows(open_study(run, experiment))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The trials of a search that nothing interrupted."""
    experiment, folder = searching(), tmp_path_factory.mktemp("straight")
    FakeTune(experiment, folder).run()
    return told(folder, experiment)


@pytest.mark.parametrize("die_within", [False, True])
@pytest.mark.parametrize("stop_after", [1, 3, 7, 13])
def test_an_interrupted_search_is_the_uninterrupted_one(
    stop_after: int, die_within: bool, straight: list[dict[str, Any]], tmp_path: Path
) -> None:
    experiment = searching()
    FakeTune(experiment, tmp_path).run(stop_after, die_within)
    FakeTune(experiment, tmp_path).run()
    broken = told(tmp_path, experiment)
    assert straight == broken
    assert len(straight) == 14
    assert {row["state"] for row in straight} == {"complete", "pruned"}
    points = [
        json.dumps({k: row[k] for k in row if k in experiment.search or "weights" in k})
        for row in broken
    ]
    assert len(set(points)) == 14


def test_the_configuration_itself_is_the_first_trial(tmp_path: Path) -> None:
    own = Search(searching(), tmp_path).suggest("a")
    assert own["number"] == 0
    assert own["learner.name"] == "maml"
    assert own["learner.inner_lr"] == pytest.approx(0.02)


def test_default_first_false_draws_the_first_trial(tmp_path: Path) -> None:
    own = checked(searching().learner, MAML).inner_lr
    first = Search(searching(default_first=False), tmp_path).suggest("a")
    assert first["learner.inner_lr"] != pytest.approx(own)


def test_a_step_reported_twice_is_journalled_once(tmp_path: Path) -> None:
    search = Search(searching(), tmp_path)
    search.suggest("a")
    result = {"step": 10, "val.score": 0.5}
    search.on_trial_result("a", result)
    once = (tmp_path / "study.journal").read_bytes()
    search.on_trial_result("a", result)
    assert (tmp_path / "study.journal").read_bytes() == once


def test_minimising_the_negated_scores_keeps_the_winner(tmp_path: Path) -> None:
    for sign, mode in ((1, "max"), (-1, "min")):
        experiment = searching(mode=mode)
        (tmp_path / mode).mkdir()
        search = Search(experiment, tmp_path / mode)
        for name, score in {"a": 0.2, "b": 0.7, "c": 0.5}.items():
            search.suggest(name)
            search.on_trial_complete(name, {"step": 40, "val.score": sign * score})
        assert winner(search.study, experiment).number == 1


def test_optuna_is_told_what_happened(tmp_path: Path) -> None:
    search = Search(searching(), tmp_path)
    results: dict[str, dict[str, Any] | None] = {
        "complete": {"step": 40, "val.score": 0.5},
        "pruned": {"step": 10, "val.score": 0.9},
        "diverged": {"step": 0, "failed": "the query loss of task 'sum' is nan at step 3."},
        "nan": {"step": 40, "val.score": math.nan},
        "lost": None,
    }
    for name in results:
        search.suggest(name)
    for name, result in results.items():
        search.on_trial_complete(name, result, error=name == "lost")
    states = optuna.trial.TrialState
    assert [t.state for t in search.study.trials] == [
        states.COMPLETE,
        states.PRUNED,
        states.FAIL,
        states.FAIL,
        states.FAIL,
    ]
    rows = trial_rows(search.study)
    assert [row["state"] for row in rows] == ["complete", "pruned", "failed", "failed", "failed"]
    assert [row["val.score"] for row in rows[:2]] == [0.5, 0.9]
    assert rows[2]["reason"].startswith("the query loss of task 'sum'")
    assert rows[3]["reason"] == "the trial ended without a finite objective"
    assert "ended with an error" in rows[4]["reason"]
    # A truncated trial may not win, however good it looked.
    assert winner(search.study, searching()).number == 0


def test_a_trial_that_ends_early_has_the_scores_it_keeps(tmp_path: Path) -> None:
    """It is complete, and may win with the score of the model that it keeps."""
    experiment = searching().override({"train.keep": "best", "train.patience": 2})
    search = Search(experiment.override({"train.eval_every": 10}), tmp_path)
    scores = {
        "early": [(10, 0.8, 10), (20, 0.3, 10), (30, 0.4, 10)],
        "pruned": [(10, 0.9, 10), (20, 0.85, 10)],
        "whole": [(10, 0.1, 10), (20, 0.2, 20), (30, 0.7, 30), (40, 0.6, 30)],
    }
    for name, reported in scores.items():
        search.suggest(name)
        results = [
            {"step": step, "val.score": score, "best_step": best, "seconds": float(step)}
            for step, score, best in reported
        ]
        for result in results:
            search.on_trial_result(name, result)
        search.on_trial_complete(name, results[-1])
    rows = trial_rows(search.study)
    assert [row["state"] for row in rows] == ["complete", "pruned", "complete"]
    assert [row["val.score"] for row in rows] == [0.8, 0.85, 0.7]
    assert [row["step"] for row in rows] == [30, 20, 40]
    assert [row["seconds"] for row in rows] == [30.0, 20.0, 40.0]
    assert winner(search.study, experiment).values == [0.8]


def test_no_step_of_the_search_copies_every_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With thousands of trials a copy of all takes seconds, and the driver would do little else."""
    plain = optuna.Study.get_trials

    def watched(self: optuna.Study, deepcopy: bool = True, states: Any = None) -> list[Any]:
        assert not deepcopy, "copies all trials"
        return plain(self, deepcopy, states)

    monkeypatch.setattr(optuna.Study, "get_trials", watched)
    FakeTune(searching(trials=8), tmp_path).run()


def test_the_journal_grows_linearly(tmp_path: Path) -> None:
    grown = []
    for number in (10, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        search = Search(searching(), folder)
        search.suggest("a")
        before = (folder / "study.journal").stat().st_size
        for step in range(1, number + 1):
            search.on_trial_result("a", {"step": step, "val.score": 0.5})
        grown.append((folder / "study.journal").stat().st_size - before)
        assert list(reports(search.study.trials[0])) == list(range(1, number + 1))
    assert grown[1] < 11 * grown[0]


def test_writing_the_table_takes_little_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = [0.0], []

    def slow(path: Path, rows: list[Any], publish: object) -> None:
        written.append((now[0], len(rows)))
        now[0] += 0.1

    monkeypatch.setattr(
        "raymtl.pipeline.search.searcher.time", SimpleNamespace(monotonic=lambda: now[0])
    )
    monkeypatch.setattr(formats, "write_rows", slow)
    search = Search(searching(trials=200), tmp_path)
    for number in range(120):
        search.suggest(str(number))
        now[0] += 0.1
        search.on_trial_complete(str(number), {"step": 0, "failed": "it diverged"})
    assert written[0][1] == 1
    assert len(written) == 3
    assert 0.1 * len(written) <= 0.03 * now[0]


def test_lost_reports_are_made_again(
    arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when one is lost between a checkpoint and the report of its score."""
    from raymtl.pipeline.search import trial

    told: list[dict[str, Any]] = []
    monkeypatch.setattr(trial, "tune", SimpleNamespace(report=told.append))
    monkeypatch.setattr(trial, "TuneReportCallback", lambda: None)
    monkeypatch.setattr(trial, "ray", SimpleNamespace(put=lambda value: value))
    dies = [True]

    def train(chosen: Experiment, arrays: Arrays, folder: Path, spec: Any) -> None:
        def observe(row: Mapping[str, Any]) -> None:
            if row["step"] == 5 and dies:
                raise RuntimeError("a machine is lost")

        train_loop(
            chosen,
            arrays,
            local_batches(chosen, arrays),
            TrainContext(lambda scores: None, observe),
            folder,
        )

    monkeypatch.setattr(trial, "train", train)
    chosen = experiment(train__steps=6, train__eval_every=2, train__checkpoint_share=0)
    trial_of = partial(
        trial.run_trial,
        {"number": 0},
        carry(chosen),
        str(tmp_path),
        arrays,
        Plan(1, 1, 2, 1.0, 0.0),
    )
    with pytest.raises(RuntimeError, match="a machine is lost"):
        trial_of()
    assert told == []
    dies.clear()
    trial_of()
    assert [row["step"] for row in told] == [2, 4, 6]
    scores = {
        row["step"]: row
        for row in formats.read_rows(tmp_path / "trials" / "0000" / "history.parquet")
    }
    assert [row["val.score"] for row in told] == [scores[step]["val.score"] for step in (2, 4, 6)]


def test_trials_out_of_memory_count_as_died(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search goes on."""
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError

    from raymtl.pipeline.search.shortage import ends_the_trial_alone

    told: list[Exception] = []
    actor = SimpleNamespace(actor_id=7, _on_error=lambda actor, error: None)
    task: Any = SimpleNamespace(
        _tracked_actor=actor, _on_error=lambda actor, error: told.append(error)
    )

    def end(manager: RayActorManager) -> None:
        manager._actor_task_failed(
            tracked_actor_task=task, exception=OutOfMemoryError("the node is low on memory")
        )

    resources: Any = SimpleNamespace()
    manager = RayActorManager(resource_manager=resources)
    monkeypatch.setattr(manager, "_cleanup_actor", lambda tracked_actor: None)
    with ends_the_trial_alone():
        end(manager)
    assert isinstance(told[0], RayActorError)
    assert "the node is low on memory" in str(told[0])
    with pytest.raises(RuntimeError, match="unexpected"):  # when Ray knows it, this is to go
        end(manager)


def test_lost_trials_take_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A fault of this package keeps its traceback."""
    import logging

    from ray.exceptions import RayActorError

    from raymtl.internals.ray import tune_logger
    from raymtl.pipeline.search.lost import lost_in_one_line

    told: list[str] = []
    logger = tune_logger()
    logger.propagate = True
    with caplog.at_level(logging.ERROR), lost_in_one_line(told.append):
        for error in (
            RayActorError(error_msg="The actor died because its node has died.\nmore"),
            KeyError("a bug"),
        ):
            logger.error("Trial task failed for trial trial-0003", exc_info=error)
    assert told == [
        "trial-0003: its process or machine is lost (The actor died because its node has died). It goes on from its "
        "last checkpoint, at most train.max_failures times."
    ]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [KeyError]


def test_without_a_complete_trial_there_is_no_winner(tmp_path: Path) -> None:
    search = Search(searching(), tmp_path)
    search.suggest("a")
    search.on_trial_complete("a", {"step": 0, "failed": "it diverged"})
    with pytest.raises(UserError, match="the first failed because it diverged"):
        winner(search.study, searching())


def test_several_objectives(tmp_path: Path) -> None:
    experiment = searching(metric=["val.score", "num_parameters"], mode=["max", "min"], asha=None)
    search = Search(experiment, tmp_path)
    for index, (score, size) in enumerate([(0.5, 10), (0.7, 20), (0.4, 30)]):
        search.suggest(str(index))
        result = {"step": 40, "val.score": score, "num_parameters": size}
        search.on_trial_result(str(index), {**result, "step": 20})
        search.on_trial_complete(str(index), result)
    assert sorted(trial.number for trial in search.study.best_trials) == [0, 1]
    assert winner(search.study, experiment).number == 1


@pytest.mark.parametrize(
    ("tune", "cpus", "gpus", "concurrency"),
    [
        ({}, 4, 0, 4),
        ({"concurrency": 2}, 4, 0, 2),
        ({"concurrency": 9}, 4, 0, 4),
        ({"cpus_per_trial": 0.5}, 4, 0, 8),
        ({"cpus_per_trial": 1.5}, 4, 0, 2),
        ({"workers_per_trial": 2}, 4, 0, 2),
        ({"workers_per_trial": 3}, 4, 0, 1),
        ({}, 16, 2, 2),
        ({"gpus_per_trial": 0.25}, 16, 2, 8),
        ({"trials": 3}, 16, 0, 3),
    ],
)
def test_concurrent_trials_all_fit(
    tune: dict[str, Any], cpus: int, gpus: int, concurrency: int
) -> None:
    assert Capacity([{"CPU": cpus, "GPU": gpus}]).plan(searching(**tune)).concurrency == concurrency


def test_a_trial_never_spans_two_machines() -> None:
    machines = [{"CPU": 3.0}, {"CPU": 3.0}, {"CPU": 3.0}]
    assert Capacity(machines).plan(searching(cpus_per_trial=2)).concurrency == 3
    assert Capacity(machines).plan(searching(workers_per_trial=3)).concurrency == 3
    with pytest.raises(UserError, match="on 3 machines"):
        Capacity(machines).plan(searching(cpus_per_trial=4))


def test_a_trial_that_never_fits_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"a trial takes 3 x 2 CPU and 0 GPU, the cluster has 4 and 0 on 1 machines\.",
    ):
        Capacity([{"CPU": 4.0}]).plan(searching(workers_per_trial=3, cpus_per_trial=2))


# Real Ray from here on.

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits", "tasks": ["left", "sum"], "shots": 1, "queries": 1},
    "encoder": {"name": "mlp", "hidden": [16]},
    "learner": {"name": "maml", "inner_lr": 0.05, "inner_steps": 1},
    "train": {"steps": 20, "meta_batch": 3, "workers": 2, "task_axis": "vmap", "eval_every": 5},
    "evaluate": {"val_episodes": 4, "test_episodes": 6},
    "tune": {"trials": 4, "asha": {"grace": 5, "reduction": 2}, "sampler": {"startup_trials": 2}},
    "search": {
        "learner.inner_lr": {"log_uniform": [0.01, 0.3]},
        "weighting.name": {"choice": ["static", "uncertainty", "pcgrad"]},
        "weighting.weights": {
            "simplex": ["left", "sum"],
            "when": {"weighting.name": "static"},
        },
    },
}


def command(folder: Path, **tune: Any) -> list[str]:
    folder.mkdir(exist_ok=True)
    path = folder / "small.yaml"
    path.write_text(
        yaml.safe_dump(SMALL | {"output": str(folder / "runs"), "tune": SMALL["tune"] | tune})
    )
    return [sys.executable, "-m", "raymtl", "tune", str(path)]


def without_address() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole small search, by the command, and what it printed.

    In this process, which has imported torch. Of two trials: more would begin and end like these.
    """
    folder, printed = tmp_path_factory.mktemp("tune"), io.StringIO()
    words = ["raymtl", *command(folder, trials=2)[3:]]
    with (
        mock.patch.dict(os.environ, without_address(), clear=True),
        mock.patch.object(sys, "argv", words),
        contextlib.redirect_stdout(printed),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert ended.value.code == 0, printed.getvalue()
    return folder / "runs" / "small", printed.getvalue()


@pytest.mark.slow
def test_the_command_leaves_a_whole_run_folder(searched: tuple[Path, str]) -> None:
    run, printed = searched
    documented = ("config.yaml", "environment.json", "study.journal", "trials.parquet", "history.parquet", "summary.json",
                  "report.html", "best/model.safetensors", "best/metrics.json", "best/config.yaml", "baselines/default",
                  "baselines/joint", "baselines/single-left", "baselines/single-sum", "baselines/ties/merged.json", "tensorboard")  # fmt: skip
    assert [name for name in documented if not (run / name).exists()] == []
    assert "winner" in printed
    assert "single-task" in printed
    assert str(load(run / "config.yaml").name) == "small"


def test_the_summary_adds_up(searched: tuple[Path, str]) -> None:
    run, _ = searched
    summary = formats.read_json(run / "summary.json")
    rows = formats.read_rows(run / "trials.parquet")
    assert sum(summary["trials"].values()) == len(rows) == 2
    best = rows[summary["best_trial"]]
    assert best["state"] == "complete"
    assert best["val.score"] == max(row["val.score"] for row in rows if row["state"] == "complete")
    assert {model["name"] for model in summary["models"]} == {
        "winner",
        "default",
        "joint",
        "task_arithmetic",
        "ties",
        "single-task",
    }
    steps = {model["name"]: model.get("steps") for model in summary["models"]}
    assert steps["winner"] == steps["default"] == steps["joint"] == 20


def test_two_workers_reproduce_the_trial(searched: tuple[Path, str]) -> None:
    """The trial ran in one process, the winner on two workers with streamed, ragged shards: the same losses."""
    run, _ = searched
    summary = formats.read_json(run / "summary.json")
    alone = formats.read_rows(run / "trials" / f"{summary['best_trial']:04d}" / "history.parquet")
    together = formats.read_rows(run / "best" / "history.parquet")
    for one, two in zip(alone, together, strict=True):
        for task in ("left", "sum"):
            assert one[f"loss.{task}"] == pytest.approx(two[f"loss.{task}"], rel=1e-3)


@pytest.mark.slow
def test_a_killed_search_resumes_unchanged(tmp_path: Path) -> None:
    """kill -9 of the driver in the second trial and in the third, one at a time; then the same trials,
    values and scores, none twice. The last two trials depend on the scores of those before.

    The other run is a whole one of the same seed, so this also shows that a seed gives the same result twice.
    """
    straight, broken = (
        [
            *command(tmp_path / name, trials=4, concurrency=1, baselines="none"),
            *("--set", "train.workers=1"),
        ]
        for name in "ab"
    )
    subprocess.run(straight, check=True, capture_output=True, env=without_address())
    for number, args in enumerate(([], ["--resume"])):
        started = subprocess.Popen(
            [*broken, *args],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=without_address(),
        )
        journal = tmp_path / "b" / "runs" / "small" / "trials.parquet"
        until = time.monotonic() + 600
        while len(formats.read_rows(journal)) < 1 + number and time.monotonic() < until:
            time.sleep(0.2)
        assert started.poll() is None
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    subprocess.run([*broken, "--resume"], check=True, capture_output=True, env=without_address())
    ours = {
        "learner.inner_lr",
        "weighting.name",
        "state",
        "step",
        "val.score",
        "number",
        "val.loss",
    }
    first, second = (
        [
            {key: row[key] for key in ours}
            for row in formats.read_rows(tmp_path / name / "runs" / "small" / "trials.parquet")
        ]
        for name in "ab"
    )
    assert first == second
    assert len(first) == 4
    tables = [
        formats.read_json(tmp_path / name / "runs" / "small" / "summary.json")["models"]
        for name in "ab"
    ]
    for one, two in zip(*tables, strict=True):
        assert (one["score"], one["tasks"]) == (two["score"], two["tasks"])
    assert [p.name for p in (tmp_path / "b" / "runs").iterdir()] == ["small"]


@pytest.mark.slow
def test_trials_of_several_workers_agree_with_one(tmp_path: Path) -> None:
    """The one is this process, which has the values from the sampler and trains without Ray."""
    args = command(
        tmp_path, concurrency=1, trials=2, workers_per_trial=2, asha=None, baselines="none"
    )
    args += ["--set", "train.workers=1"]  # of the winner, which is not looked at
    subprocess.run(args, check=True, capture_output=True, env=without_address())
    rows = formats.read_rows(tmp_path / "runs" / "small" / "trials.parquet")
    chosen = load(tmp_path / "small.yaml")
    (tmp_path / "search").mkdir()
    search = Search(chosen, tmp_path / "search")
    for row, name in zip(rows, "ab", strict=True):
        values = search.suggest(name)
        assert row["number"] == values.pop("number")
        assert row["learner.inner_lr"] == values["learner.inner_lr"]
        alone = chosen.override(values)
        train(alone, alone.data.load(), tmp_path / name)
        (*_, last) = formats.read_rows(tmp_path / name / "history.parquet")
        assert row["state"] == "complete"
        assert row["val.loss"] == pytest.approx(last["val.loss"], rel=1e-3)
