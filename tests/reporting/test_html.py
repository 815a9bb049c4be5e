"""The report of a small synthetic run: every section, self-contained, escaped, and no claim beyond the intervals."""

import base64
import copy
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from PIL import Image

from raymtl.config import Experiment, parse
from raymtl.data.sources.digits import Digits
from raymtl.encoders import ConvSpec
from raymtl.evaluation.examples import example_rows
from raymtl.reporting.html import Estimate, outcome, protocol, result_rows, write_report
from raymtl.reporting.html.collect import drawable, pareto_numbers, read_run
from raymtl.reporting.html.parallel_plot import parallel_plot
from raymtl.reporting.html.pareto_plot import pareto_plot
from raymtl.reporting.html.pictures import pictures
from raymtl.reporting.html.search_plots import (
    choices_plot,
    history_plot,
    importance_plot,
)
from raymtl.reporting.html.tables import compare, gain_rows
from raymtl.reporting.html.training_plots import smoothed
from raymtl.reporting.html.verdict import adaptation, progress
from raymtl.schema.distributions import suggest
from raymtl.storage import formats
from tests.data.blood import write_voc
from tests.drawing import one_episode
from tests.tasks.shapes import Shapes
from tests.tasks.test_mixes import problem_of

HOSTILE = "<script>alert(1)</script>"
METRICS = {
    ("left", "accuracy"): True,
    ("right", "accuracy"): True,
    ("sum", "r2"): True,
    ("sum", "mae"): False,
}
SECTIONS = (
    "results", "values", "gain", "search", "importance", "parallel", "training", "curves", "pictures", "trials",
    "environment",
)  # fmt: skip
SEARCH = {
    "learner.inner_lr": {"log_uniform": [0.001, 1.0]},
    "train.lr": {"log_uniform": [0.0003, 0.03]},
    "sharing.name": {"choice": ["hard", "cross_stitch", "soft"]},
    "sharing.own": {"uniform": [0.5, 1.0], "when": {"sharing.name": "cross_stitch"}},
    "weighting.weights": {"simplex": ["left", "right", "sum"]},
}


def estimate(mean: float, ci95: float) -> dict[str, float]:
    return {"mean": mean, "ci95": ci95}


def scores(quality: float, ci95: float = 0.01, gain: float = 0.4) -> dict[str, Any]:
    """`score` and `tasks` of a model whose metrics all lie at `quality`, or as far below 1 where lower is better."""
    tasks: dict[str, Any] = {}
    for (task, metric), higher in METRICS.items():
        after, change, width = (
            (quality, gain, ci95) if higher else (4 - 4 * quality, -4 * gain, 4 * ci95)
        )
        tasks.setdefault(task, {})[metric] = {
            "higher_is_better": higher,
            "ratio_scale": metric != "r2",
            "before": estimate(after - change, width),
            "after": estimate(after, width),
            "gain": estimate(change, width if gain else 0.0),
        }
    score = {key: tasks["left"]["accuracy"][key] for key in ("before", "after", "gain")}
    return {"score": score, "tasks": tasks, "transductive": False}


def metrics(quality: float, inner_steps: int = 3) -> dict[str, Any]:
    steps = list(range(2 * inner_steps + 1))
    content = scores(quality, gain=0.4 if inner_steps else 0.0)
    curve: dict[str, Any] = {"steps": steps}
    for (task, metric), _ in METRICS.items():
        ends = content["tasks"][task][metric]
        low, high = ends["before"]["mean"], ends["after"]["mean"]
        curve[f"{task}.{metric}"] = {
            "mean": [high + (low - high) * math.exp(-1.1 * step) for step in steps],
            "ci95": [0.02 for _ in steps],
        }
    facts = {"split": "test", "episodes": 200, "inner_steps": inner_steps}
    return {
        **facts,
        "num_parameters": 20277,
        "steps": 300,
        "train_seconds": 21.4,
        **content,
        "curve": curve,
    }


def history(steps: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        row: dict[str, Any] = {
            "step": step,
            "lr": 0.003,
            "grad_norm": 1.0,
            "seconds": 0.07,
            "data_wait_pct": 3.0,
        }
        for index, task in enumerate(("left", "right", "sum")):
            row[f"loss.{task}"] = (0.2 + 2.1 * math.exp(-step / (40 + 30 * index))) * float(
                rng.lognormal(0, 0.15)
            )
            row[f"weight.{task}"] = (1.3, 1.2, 0.5)[index]
        if step % 30 == 0:
            quality = 0.93 - 0.8 * math.exp(-step / 60)
            row |= {"val.score": quality, "val.loss": 3 * (1 - quality)}
            row |= {
                f"val.{t}.{m}": quality if up else 4 * (1 - quality)
                for (t, m), up in METRICS.items()
            }
        rows.append(row)
    return rows


def search(folder: Path, experiment: Experiment, trials: int) -> list[dict[str, Any]]:
    """A study of random values, best near inner_lr 0.1, with pruned and failed trials and one running; and its rows."""
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    directions = [
        StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE
        for mode in experiment.tune.modes
    ]
    sampler = optuna.samplers.RandomSampler(seed=1)
    study = optuna.create_study(
        storage=storage, study_name="a name", directions=directions, sampler=sampler
    )
    rows = []
    for number in range(trials):
        trial = study.ask()
        values = suggest(experiment.search, experiment.flat(), trial)
        state = {3: "pruned", 4: "pruned", 6: "failed"}.get(number % 7, "complete")
        state = "running" if number == trials - 1 else state
        quality = (
            0.92
            - 0.15 * abs(math.log10(values["learner.inner_lr"]) + 1)
            - 0.1 * (values["sharing.name"] == "soft")
        )
        row = {
            "number": number,
            "state": state,
            "step": 300,
            "seconds": 21.0 + number,
            "reason": None,
            **values,
        }
        if state == "pruned":
            row, quality = row | {"step": 100}, quality - 0.2
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        if state == "failed":
            row |= {"step": 12, "reason": f"DivergedError: {HOSTILE}"}
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        if state in ("complete", "pruned"):
            row |= {
                "val.score": quality,
                "val.loss": 3 - 3 * quality,
                "num_parameters": 20000 + 997 * (number % 4),
            }
            row |= {f"val.{task}.{metric}": quality for task, metric in METRICS}
        if state == "complete":
            study.tell(trial, [row[name] for name in experiment.tune.metrics])
        rows.append(row)
    return rows


def examples() -> list[dict[str, Any]]:
    data, rows = Digits(), []
    arrays = data.load()
    for number in range(12):
        episode, domain = one_episode(data, arrays, "test", number)
        assert isinstance(episode.query.inputs, torch.Tensor)
        picture = episode.query.inputs[0]
        row: dict[str, Any] = {
            "domain": domain,
            "input": picture.flatten().tolist(),
            "shape": list(picture.shape),
        }
        for task in data.task_names:
            target = float(episode.query.targets[task][0])
            miss = 0.37 if task == "sum" else float(number % 5 == 4)
            row |= {
                f"{task}.target": target,
                f"{task}.before": (target + number) % 10,
                f"{task}.after": target + miss,
            }
        rows.append(row)
    return rows


def make_run(folder: Path, command: str = "tune", *, trials: int = 24, **tune: Any) -> Path:
    """A complete run folder after docs/run-folder.md, with deterministic numbers."""
    folder.mkdir(parents=True)
    tree: dict[str, Any] = {
        "name": "quickstart",
        "train": {"steps": 300},
        "tune": {"trials": trials, **tune},
    }
    experiment = parse(tree | ({"search": SEARCH} if command == "tune" else {}))
    experiment.save(folder / "config.yaml")
    started = {
        "command": ["raymtl", command, "quickstart.yaml"],
        "started": "2024-03-01T10:20:30+0000",
        "seed": 0,
    }
    packages = {"raymtl": "0.1.0", "ray": "2.9", "torch": "2.1", "optuna": "4.0"}
    formats.write_json(
        folder / "environment.json", {"python": "3.12.1", "packages": packages, **started}
    )
    formats.write_rows(folder / "history.parquet", history(300))
    formats.write_rows(folder / "best" / "examples.parquet", examples())
    formats.write_json(folder / "best" / "metrics.json", metrics(0.93))
    summary: dict[str, Any] = {
        "name": "quickstart",
        "command": command,
        "seed": 0,
        "seconds": 190.2,
    }
    if command == "train":
        summary["models"] = [{"name": "model", "folder": "best", **scores(0.93)}]
    else:
        rows = search(folder, experiment, trials)
        formats.write_rows(folder / "trials.parquet", rows)
        summary |= found(rows, experiment) | {"models": compared()}
        formats.write_json(folder / "baselines" / "default" / "metrics.json", metrics(0.8))
        formats.write_json(
            folder / "baselines" / "joint" / "metrics.json", metrics(0.5, inner_steps=0)
        )
    formats.write_json(folder / "summary.json", summary)
    return folder


def found(rows: list[dict[str, Any]], experiment: Experiment) -> dict[str, Any]:
    objectives = dict(zip(experiment.tune.metrics, experiment.tune.modes, strict=True))
    best = max(
        (row for row in rows if row["state"] == "complete"), key=lambda row: row["val.score"]
    )
    names = [
        key for key in best if key.startswith(("learner.", "train.", "sharing.", "weighting."))
    ]
    return {
        "trials": {
            state: sum(row["state"] == state for row in rows)
            for state in ("complete", "pruned", "failed")
        },
        "objectives": objectives,
        "best_trial": best["number"],
        "best_values": {name: best[name] for name in names},
        "pareto": pareto_numbers(rows, objectives),
    }


def compared() -> list[dict[str, Any]]:
    return [
        {"name": "winner", "folder": "best", **scores(0.93), "delta_m": -12.04, "delta_p": 15.06},
        {
            "name": "default",
            "folder": "baselines/default",
            **scores(0.8),
            "delta_m": 3.1,
            "delta_p": -2.5,
        },
        {
            "name": "joint",
            "folder": "baselines/joint",
            **scores(0.5, gain=0.0),
            "delta_m": 40.0,
            "delta_p": -35.0,
        },
        {
            "name": "single-task",
            "folder": None,
            **scores(0.85),
            "score": None,
            "delta_m": 0.0,
            "delta_p": 0.0,
        },
    ]


class Elements(HTMLParser):
    """What a page loads, links to, and has as ids; its text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.styles = self.text = ""
        self._inside = ""
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag if tag in ("script", "style") else ""
        self.tags.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                self.links.append(value or "")
            if key == "id":
                self.ids.append(value or "")
            if key == "style":
                self.styles += value or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.styles += data
        elif not self._inside:
            self.text += data + " "


def drawn(figure: go.Figure | None) -> Any:
    assert figure is not None
    return figure.data


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="module")
def page(tuned: Path) -> str:
    return write_report(tuned).read_text()


@pytest.fixture
def run(tuned: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(tuned, tmp_path / "run"))


@pytest.fixture
def summary(tuned: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tuned / "summary.json").read_text())
    return content


def test_page_holds_every_section_and_plot(page: str) -> None:
    ids = Elements(page).ids
    plots = ("history", "importance", "parallel", "losses", "validation", "curves")
    assert [name for name in ids if name in SECTIONS] == list(SECTIONS)
    assert {f"plot-{name}" for name in plots} <= set(ids)
    assert page.count("<img src=") == 12


def test_page_loads_nothing_from_elsewhere(page: str) -> None:
    elements = Elements(page)
    assert elements.links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in elements.links)
    assert not {"link", "iframe", "object", "embed", "base"} & set(elements.tags)
    assert "@import" not in elements.styles and "url(" not in elements.styles


def test_only_the_report_is_added_to_the_run(tuned: Path, page: str) -> None:
    assert [path.name for path in tuned.iterdir() if "report" in path.name] == ["report.html"]


def test_hostile_texts_are_escaped(run: Path) -> None:
    content = json.loads((run / "summary.json").read_text())
    content["name"] = HOSTILE
    content["models"][1]["name"] = HOSTILE
    formats.write_json(run / "summary.json", content)
    environment = json.loads((run / "environment.json").read_text())
    formats.write_json(
        run / "environment.json",
        environment | {"command": ["raymtl", HOSTILE], "host": f'"{HOSTILE}'},
    )
    hostile = write_report(run).read_text()
    text = Elements(hostile).text
    assert HOSTILE not in hostile
    assert f"raymtl {HOSTILE}" in text
    assert f"DivergedError: {HOSTILE}" in text and f"raymtl: {HOSTILE}" in text


def test_result_table_has_every_model_and_both_deltas(page: str, summary: dict[str, Any]) -> None:
    text = Elements(page).text
    for label in (
        "winner of the search",
        "default",
        "joint",
        "single-task",
        "delta_m ↓",
        "delta_p ↑",
        "−12.0 %",
        "+15.1 %",
    ):
        assert label in text
    assert "without sum.r2, which can be zero or negative" in text
    first = result_rows(summary)[0]
    assert list(first.cells) == ["score", *(f"{task}.{metric}" for task, metric in METRICS)]
    assert first.cells["left.accuracy"].text == "0.530 → 0.930 ± 0.010"
    assert (first.delta_m, first.delta_p) == (-12.04, 15.06)


def test_many_metrics_turn_the_table(summary: dict[str, Any], run: Path) -> None:
    """It keeps every value."""
    for model in summary["models"]:
        model["tasks"] |= {
            f"more-{index}": copy.deepcopy(model["tasks"]["sum"]) for index in range(4)
        }
    formats.write_json(run / "summary.json", summary)
    wide = write_report(run).read_text()
    text = Elements(wide).text
    assert "metric winner of the search default" in text and "−12.0 %" in text
    assert wide.count('<b class="best">') == len(result_rows(summary)[0].cells) == 13


@pytest.mark.parametrize(("rival", "bold"), [(0.85, True), (0.915, False), (0.99, False)])
def test_bold_only_where_the_interval_excludes_the_next(
    summary: dict[str, Any], run: Path, rival: float, bold: bool
) -> None:
    summary["models"][3] |= scores(rival) | {"score": None}
    rows = result_rows(summary)
    assert all(cell.best is bold for cell in rows[0].cells.values())
    assert all(cell.best is (rival == 0.99) for cell in rows[3].cells.values())
    formats.write_json(run / "summary.json", summary)
    assert write_report(run).read_text().count('<b class="best">') == (0 if rival == 0.915 else 5)


def test_single_task_models_are_scored_by_their_mean(summary: dict[str, Any]) -> None:
    single = summary["models"][3]
    single["tasks"]["sum"]["r2"]["after"] = estimate(0.55, 0.04)
    after = result_rows(summary)[3].cells["score"].after
    assert after is not None and np.allclose(after, (0.75, 0.02))


def test_compare_needs_intervals_that_do_not_touch() -> None:
    low, high = Estimate(0.5, 0.1), Estimate(0.75, 0.1)
    assert (compare(high, low, True), compare(high, low, False), compare(low, high, True)) == (
        1,
        -1,
        -1,
    )
    assert compare(Estimate(0.6, 0.1), low, True) == 0
    assert compare(Estimate(0.6, math.inf), Estimate(0.1, 0.0), True) == 0


@pytest.mark.parametrize(
    ("rival", "says"),
    [
        (0.85, "The winner reaches a score of 0.930 ± 0.010"),
        (0.925, "The winner does not win clearly"),
        (0.99, "The winner does not win: it reaches"),
    ],
)
def test_outcome_claims_no_more_than_the_intervals(
    summary: dict[str, Any], rival: float, says: str
) -> None:
    summary["models"][3] |= scores(rival) | {"score": None}
    sentence = outcome(result_rows(summary))
    assert sentence.startswith(says)
    assert ("difference holds 0" in sentence) is (rival == 0.925)
    assert ("worse than single-task models (0.990 ± 0.010)" in sentence) is (rival == 0.99)


def test_gain_is_judged_by_its_own_interval(summary: dict[str, Any]) -> None:
    changed = copy.deepcopy(summary)
    changed["models"][0]["tasks"]["left"]["accuracy"]["gain"] = estimate(0.005, 0.01)
    changed["models"][0]["tasks"]["sum"]["mae"]["gain"] = estimate(0.5, 0.01)  # a higher error
    effects = {gain.metric: gain.effect for gain in gain_rows(result_rows(changed)[0])}
    assert effects == {
        "score": 1,
        "left.accuracy": 0,
        "right.accuracy": 1,
        "sum.r2": 1,
        "sum.mae": -1,
    }


def test_an_unknown_interval_is_never_best_nor_worse(summary: dict[str, Any]) -> None:
    for model in summary["models"]:
        for metric in (metric for task in model["tasks"].values() for metric in task.values()):
            metric["after"]["ci95"] = None
        if model["score"]:
            model["score"]["after"]["ci95"] = None
    rows = result_rows(summary)
    assert not any(cell.best for row in rows for cell in row.cells.values())
    sentence = outcome(rows)
    assert "better than" not in sentence and "worse than" not in sentence


def test_a_gain_inside_its_interval_is_no_improvement(summary: dict[str, Any]) -> None:
    summary["models"][0]["tasks"]["left"]["accuracy"]["gain"] = estimate(0.005, 0.01)
    sentence = adaptation(gain_rows(result_rows(summary)[0]))
    assert sentence.startswith("Of 4 metrics, adaptation improved 3 and worsened 0 ")
    assert sentence.endswith("1 moved within it.")


def test_the_best_of_a_minimum_is_the_lowest(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", metric="val.loss", mode="min")
    (run / "summary.json").unlink()
    assert " has the lowest val.loss so far" in progress(read_run(run))


def test_learner_without_a_score_before_adaptation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "train")
    content = json.loads((run / "summary.json").read_text())
    model = content["models"][0]
    for scored in [
        model["score"],
        *(metric for task in model["tasks"].values() for metric in task.values()),
    ]:
        scored |= {"before": None, "gain": None}
    formats.write_json(run / "summary.json", content)
    assert "predicts nothing unadapted" in Elements(write_report(run).read_text()).text
    assert result_rows(content)[0].cells["score"].text == "0.930 ± 0.010"


def test_train_run_has_no_search(tmp_path: Path) -> None:
    elements = Elements(write_report(make_run(tmp_path / "run", "train")).read_text())
    assert not {"search", "importance", "parallel", "trials", "values"} & set(elements.ids)
    assert {"results", "gain", "training", "curves", "pictures", "environment"} <= set(elements.ids)
    assert "there is no other model" in elements.text and "delta_m" not in elements.text
    assert "not complete" not in elements.text


def test_a_run_that_does_not_adapt_says_nothing_of_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "train")
    content = formats.read_json(run / "summary.json")
    for model in content["models"]:
        model["adapts"] = False
        for scored in [model["score"], *(m for t in model["tasks"].values() for m in t.values())]:
            scored |= {"before": scored["after"], "gain": {"mean": 0.0, "ci95": 0.0}}
    formats.write_json(run / "summary.json", content)
    page = write_report(run).read_text()
    body = page[page.index("<header>") :]
    elements = Elements(body[: body.index('<section id="environment">')])
    assert {"results", "training"} <= set(elements.ids)
    assert not {"gain", "curves"} & set(elements.ids)
    for word in ("adapt", "inner step", "before"):
        assert word not in elements.text.lower(), word


@pytest.fixture(params=["everything but the summary", "trials only", "nothing"])
def interrupted(run: Path, request: pytest.FixtureRequest) -> tuple[Path, str]:
    (run / "summary.json").unlink()
    if request.param != "everything but the summary":
        (run / "best" / "metrics.json").unlink()
        (run / "best" / "examples.parquet").unlink()
        (run / "history.parquet").unlink()
        for name in ("default", "joint"):
            (run / "baselines" / name / "metrics.json").unlink()
    if request.param == "nothing":
        (run / "trials.parquet").unlink()
        (run / "environment.json").unlink()
    return run, str(request.param)


def test_interrupted_runs_show_what_exists(interrupted: tuple[Path, str]) -> None:
    """They say that they are not complete."""
    run, kind = interrupted
    elements = Elements(write_report(run).read_text())
    assert "This run is not complete" in elements.text
    assert ("plot-history" in elements.ids) is (kind != "nothing")
    assert ("plot-losses" in elements.ids) is (kind == "everything but the summary")
    assert (
        "Trials so far: 14 complete, 6 pruned, 3 failed, 1 running (of 24)." in elements.text
    ) is (kind != "nothing")
    assert ("better than default" in elements.text) is (kind == "everything but the summary")


def test_interrupted_searches_show_the_best_trials_training(run: Path) -> None:
    best = json.loads((run / "summary.json").read_text())["best_trial"]
    (run / "summary.json").unlink()
    (run / "history.parquet").rename(run / "moved.parquet")
    formats.write_rows(run / "trials" / f"{best:04d}" / "history.parquet", history(60))
    data = read_run(run)
    assert (len(data.history), data.summary["best_trial"]) == (60, best)
    assert data.history_of == f"trial {best}, the best so far"


def test_states_differ_in_colour_and_symbol(tuned: Path) -> None:
    traces = drawn(history_plot(read_run(tuned)))
    marks = {
        t.name: t.marker for t in traces if t.name in ("complete", "pruned", "failed", "running")
    }
    assert len(marks) == 4
    assert (
        len({mark.color for mark in marks.values()})
        == len({mark.symbol for mark in marks.values()})
        == 4
    )


def test_best_so_far_is_of_complete_trials(tuned: Path) -> None:
    run = read_run(tuned)
    line = next(t for t in drawn(history_plot(run)) if t.name == "best complete so far")
    ended = [row["val.score"] for row in run.trials if row["state"] == "complete"]
    assert list(line.y[:-1]) == list(np.maximum.accumulate(ended))


def test_parallel_axes_mark_unused_values(tuned: Path) -> None:
    run = read_run(tuned)
    axes = {axis.label: axis for axis in drawn(parallel_plot(run))[0].dimensions}
    assert set(axes["sharing.name"].ticktext) == {"hard", "cross_stitch", "soft"}
    own, rates = axes["sharing.own"], axes["learner.inner_lr"]
    unused = own.tickvals[own.ticktext.index("not used")]
    rows = [row for row in run.trials if row["state"] in ("complete", "pruned")]
    assert [value == unused for value in own.values] == [
        row["sharing.name"] != "cross_stitch" for row in rows
    ]
    assert np.allclose(rates.values, [math.log10(row["learner.inner_lr"]) for row in rows])
    assert all(
        axis.range[0] <= value <= axis.range[1] for axis in axes.values() for value in axis.values
    )


def test_choices_draw_the_best_on_top(tuned: Path) -> None:
    run = read_run(tuned)
    figure = choices_plot(run)
    rows = [row for row in run.trials if row["state"] == "complete"]
    marks = next(t for t in drawn(figure) if t.name == "complete")
    assert list(zip(marks.y, marks.x, strict=True)) == [
        (row["sharing.name"], row["val.score"]) for row in rows
    ]
    best = max(rows, key=lambda row: row["val.score"])
    assert figure is not None and figure.layout.yaxis.categoryarray[-1] == best["sharing.name"]


def test_importance_compares_what_all_complete_trials_have(tuned: Path) -> None:
    run = read_run(tuned)
    (bars,) = drawn(importance_plot(run.study, run.objectives))
    assert "learner.inner_lr" in bars.y and "sharing.own" not in bars.y


def test_several_objectives_have_a_pareto_plot(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", metric=["val.score", "num_parameters"], mode=["max", "min"])
    data = read_run(run)
    front = next(t for t in drawn(pareto_plot(data)) if t.name == "on the front")
    rows = {row["number"]: row for row in data.trials}
    assert list(front.x) == sorted(rows[number]["val.score"] for number in data.summary["pareto"])
    ids = Elements(write_report(run).read_text()).ids
    assert {"pareto", "plot-pareto", "plot-importance", "plot-history"} <= set(ids)


def test_pareto_numbers_are_those_no_other_trial_dominates() -> None:
    points = [(1, 0.5), (2, 2), (3, 1), (0, 9), (2, 2), (math.nan, 0)]
    trials = [{"number": i, "state": "complete", "a": a, "b": b} for i, (a, b) in enumerate(points)]
    trials.append({"number": 9, "state": "pruned", "a": 9, "b": 0})
    assert pareto_numbers(trials, {"a": "max", "b": "min"}) == [0, 2]
    assert pareto_numbers(trials, {"a": "min", "b": "max"}) == [3]
    assert pareto_numbers(trials[:5], {"a": "max", "b": "max"}) == [1, 2, 3, 4]


def test_importance_needs_four_complete_trials(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", trials=4)  # three complete, one running
    assert importance_plot(read_run(run).study, {"val.score": "max"}) is None
    assert re.search(
        "needs at least 4 complete trials; this run has 3",
        Elements(write_report(run).read_text()).text,
    )


def test_smoothing_keeps_a_constant() -> None:
    """It skips what is not finite."""
    values = np.full(101, 2.0)
    values[[0, 50]] = np.nan, np.inf
    assert np.allclose(smoothed(values), 2.0)


def test_one_diverging_trial_hides_no_other() -> None:
    scores = [0.2, 0.3, 0.4, 0.35, -1e6]
    shown = drawable(scores, "max")
    assert shown[:4] == scores[:4]
    assert -3 < shown[4] < 0.2
    assert drawable([-score for score in scores], "min") == [-score for score in shown]
    assert drawable([1.0, -1e6], "max") == [1.0, -1e6]


@pytest.mark.parametrize(
    ("transductive", "sentence"),
    [
        ((False, False), "Not transductive: no statistic of the query set was used."),
        ((True, True), "Transductive: the query set was seen as a whole."),
        (
            (True, False),
            "Transductive, the query set was seen as a whole: winner. The other models are not transductive.",
        ),
    ],
)
def test_the_result_table_says_which_scores_are_transductive(
    transductive: tuple[bool, ...], sentence: str
) -> None:
    names = ("winner", "default")
    models = [{"name": n, "transductive": t} for n, t in zip(names, transductive, strict=True)]
    assert protocol({"models": models}) == sentence


def shapes() -> tuple[Shapes, list[dict[str, Any]], Any]:
    """Held-out pictures with a label of every kind, and what a model that was never trained says of them."""
    source = Shapes(unboxed=0.0)
    algorithm = problem_of(source, encoder=ConvSpec(channels=(4, 4)), inner_steps=0)
    chosen = (
        Experiment.model_validate({"learner": {"name": "maml", "inner_steps": 0}})
        .resolve()
        .model_copy(update={"data": source})
    )
    with torch.no_grad():
        rows = example_rows(chosen, algorithm, algorithm.init_params(), {}, "test")
    return source, rows, algorithm.tasks


def test_pixels_and_boxes_are_drawn() -> None:
    """The rest is told."""
    source, rows, tasks = shapes()
    for row, picture in zip(rows, pictures(rows, tasks, source), strict=True):
        assert [panel.task for panel in picture.panels] == ["pixels", "far", "facing", "boxes"]
        assert [line.task for line in picture.lines] == [
            "which",
            "disc",
            "shown",
            "amount",
            "place",
        ]
        assert len(picture.lines[4].target.split(", ")) == 2
        assert picture.lines[0].after.right == (row["which.after"] == row["which.target"])
        classes = np.array(row["pixels.target"]).reshape(24, 24)
        panel = picture.panels[0]
        content = base64.b64decode(panel.truth.source.partition(",")[2])
        with Image.open(io.BytesIO(content)) as drawn:
            colours = np.asarray(drawn.convert("RGB"))
        assert (colours[classes < 0] == 0).all()
        for name, colour in panel.legend:
            here = np.unique(colours[classes == int(name)], axis=0)
            assert [f"rgb({r},{g},{b})" for r, g, b in here.tolist()] in ([colour], [])


def test_boxes_are_drawn_with_class_and_score(run: Path) -> None:
    source, rows, tasks = shapes()
    found = np.full((100, 6), -1.0)
    found[:3] = [[1, 2, 3, 12, 9, 0.87], [0, 4, 4, 8, 8, 0.51], [0, 0, 0, 5, 5, 0.49]]
    for row in rows:
        row["boxes.after"], row["boxes.after.shape"] = found.ravel().tolist(), list(found.shape)
    picture = pictures(rows, tasks, source)[0]
    panel = picture.panels[-1]
    assert [tuple(box) for box in panel.after.boxes] == [
        (2, 3, 10, 6, "1 0.87"),
        (4, 4, 4, 4, "0 0.51"),
    ]
    truth = np.array(rows[0]["boxes.target"]).reshape(-1, 5)
    truth = truth[truth[:, 0] >= 0]
    assert panel.after.behind == panel.truth.boxes
    np.testing.assert_allclose([box[:2] for box in panel.truth.boxes], truth[:, 1:3])
    np.testing.assert_allclose(
        [box[2:4] for box in panel.truth.boxes], truth[:, 3:] - truth[:, 1:3]
    )
    assert [box.text for box in panel.truth.boxes] == [str(int(label)) for label in truth[:, 0]]


def test_the_page_names_the_boxes_classes(run: Path, tmp_path: Path) -> None:
    write_voc(tmp_path / "data")
    chosen = Experiment.model_validate(
        {
            "data": {
                "name": "voc",
                "folder": str(tmp_path / "data"),
                "size": (36, 48),
                "tasks": ("boxes", "count"),
            },
            "encoder": {"name": "conv", "channels": [4]},
            "learner": {"name": "maml", "inner_steps": 0},
        }
    ).resolve()
    arrays, algorithm = chosen.data.load(), chosen.build()
    with torch.no_grad():
        rows = example_rows(chosen, algorithm, algorithm.init_params(), arrays, "test")
    for row in rows:
        found = np.full((100, 6), -1.0)
        found[0] = [1, 2, 3, 12, 9, 0.87]
        row["boxes.after"], row["boxes.after.shape"] = found.ravel().tolist(), [100, 6]
    chosen.save(run / "config.yaml")
    formats.write_rows(run / "best" / "examples.parquet", rows)
    page = write_report(run).read_text()
    assert page.count(
        '<rect class="found" x="2.0" y="3.0" width="10.0" height="6.0"><title>square 0.87'
    ) == len(rows)
    true = sum(
        np.array(row["boxes.target"])[::5].tolist().count(label) for row in rows for label in (0, 1)
    )
    assert page.count('<rect class="truth"') == page.count('<rect class="behind"') == true > 0
    assert re.search(r"<td>disc \d, square \d</td>", page)
