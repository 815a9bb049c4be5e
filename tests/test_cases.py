"""Walks a folder of small inputs that once went wrong; skipped where RAYMTL_CASES does not name one."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raymtl.cli import main
from raymtl.config import load
from raymtl.evaluation.baselines import table
from raymtl.evaluation.evaluate import evaluate_folder
from raymtl.storage import strict_json
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from tests.cases import INSPECTED, OTHERS, Seen, never, refused

CASES = Path(os.environ.get("RAYMTL_CASES") or "nowhere")
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="RAYMTL_CASES names no folder of cases")
FOUND = sorted(path.name for path in CASES.iterdir() if path.is_dir()) if CASES.is_dir() else []
FAULTS = ("Traceback", "MarkupError", "terminate called", "Warning:", r"\bNaN\b", r"\bInfinity\b")
"""What no command may print."""


def no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=no_json)


def check_always(seen: Seen) -> None:
    """What holds of every command, whatever its input."""
    assert seen.status in (0, 2), seen.text
    never(*FAULTS)(seen)
    for path in seen.folder.rglob("*.json"):
        strict(path.read_text())


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the case that the test is about, and its maker run."""
    folder: Path = tmp_path / request.param
    shutil.copytree(CASES / request.param, folder)
    for name in ("COLUMNS", "RAY_ADDRESS", "RAYMTL_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(folder)
    if (folder / "make.py").exists():
        subprocess.run([sys.executable, "make.py"], cwd=folder, check=True)
    return folder


def of(*names: str) -> pytest.MarkDecorator:
    """A test of these cases, as far as they are there."""
    return pytest.mark.parametrize("case", [name for name in names if name in FOUND], indirect=True)


def call(*args: str) -> tuple[int, str, str]:
    """Exit status and outputs of `raymtl ARGS`, in this process; a warning of a library is an error."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["raymtl", *args]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error", UserWarning)
            warnings.simplefilter("error", RuntimeWarning)
            main()
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        sys.argv = argv
    return status, out.getvalue(), err.getvalue()


def run(folder: Path, *args: str, **env: str) -> Seen:
    """`raymtl ARGS` in a process of its own; `told` are its `--json`, where it has these."""
    done = subprocess.run(
        [sys.executable, "-m", "raymtl", *args],
        cwd=folder, capture_output=True, encoding="utf8", errors="replace", timeout=900, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)} | env,
    )  # fmt: skip
    return seen_of(folder, args, (done.returncode, done.stdout, done.stderr))


def run_here(folder: Path, *args: str) -> Seen:
    """`raymtl ARGS` in this process, which has imported torch."""
    return seen_of(folder, args, call(*args))


def seen_of(folder: Path, args: tuple[str, ...], done: tuple[int, str, str]) -> Seen:
    status, out, err = done
    told = strict(out) if "--json" in args and status == 0 else {}
    seen = Seen(status, out, err, folder, told)
    check_always(seen)
    return seen


@of(*(name for name in FOUND if name not in OTHERS and (CASES / name / "c.yaml").exists()))
def test_inspection(case: Path) -> None:
    """Cases without an expectation must end well or in one sentence."""
    status, out, err = call("data", "inspect", "c.yaml")
    told: Any = {}
    if status == 0:
        again, as_json, _ = call("data", "inspect", "c.yaml", "--json")
        assert again == 0
        told = strict(as_json)
    seen = Seen(status, out, err, case, told)
    check_always(seen)
    if status == 2:
        refused()(seen)
    if case.name in INSPECTED:
        INSPECTED[case.name](seen)


@of("H07-locale")
def test_yaml_is_utf8_in_any_locale(case: Path) -> None:
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "300"}
    assert run(case, "data", "inspect", "c.yaml", **env).status == 0
    seen = run(case, "data", "inspect", "c.yaml", "--json", **env)
    assert set(seen.told["tasks"]) == {"цена", "标签"} and seen.role("größe") == "number"


def scores(model: Mapping[str, Any], task: str = "y") -> dict[str, float | None]:
    """Metric -> its mean after adaptation."""
    return {name: one["after"]["mean"] for name, one in model["tasks"][task].items()}


def notes_of(told: Mapping[str, Any]) -> str:
    return "\n".join(f"{note['place']}: {note['text']}" for note in told["notes"])


@of("A09g-const-label")
def test_a_constant_target_has_no_r2(case: Path) -> None:
    metrics = trained_here(case, {})
    assert scores(metrics)["r2"] is None
    assert metrics["score"]["after"]["mean"] is None


OFFSETS = {
    "A12g-large-offset": 10**9,
    "L2-offset-2e+07-std-1": 2 * 10**7,
    "L3-offset-1e+08-std-1": 10**8,
}


@of(*OFFSETS)
def test_scores_ignore_the_shift_of_labels(case: Path) -> None:
    own: dict[str, Any] = {}
    if case.name.startswith("A12g"):
        own = {"train.steps": 200, "train.lr": 0.02}
    far = scores(trained_here(case, own))
    lines = (case / "d.csv").read_text().splitlines()
    moved = [line.rpartition(",") for line in lines[1:]]
    near_lines = [f"{first},{Decimal(label) - OFFSETS[case.name]}" for first, _, label in moved]
    (case / "d.csv").write_text("\n".join([lines[0], *near_lines]) + "\n")
    near = scores(trained_here(case, own))
    for name in ("r2", "mae", "rmse"):
        assert far[name] == pytest.approx(near[name], rel=0.01, abs=0.01), name


def trained_here(case: Path, own: dict[str, Any]) -> dict[str, Any]:
    """metrics.json of the configuration, trained in this process, which takes no start of Ray."""
    experiment = load(case / "c.yaml", own)
    arrays = experiment.data.load()
    folder = case / "here"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    train_loop(
        experiment,
        arrays,
        local_batches(experiment, arrays),
        TrainContext(lambda _: None, lambda _: None),
        folder,
    )
    evaluate_folder(folder, arrays, experiment.data)
    metrics: dict[str, Any] = strict((folder / "metrics.json").read_text())
    return metrics


@of("J1-nan-in-json")
def test_scores_that_are_not_defined_are_null(case: Path) -> None:
    metrics = trained_here(case, {})
    assert scores(metrics)["auroc"] is None
    assert "'y'" in notes_of(metrics)
    (row,) = table({"model": case / "here"})
    assert scores(strict(strict_json.dumps(row)))["auroc"] is None


@of("W3-sparse-task-100k", "W5-sparse-task-small")
def test_tasks_with_few_labels_are_named_or_scored(case: Path) -> None:
    """The score of the sparse task is a number, or null and named; the mean is of the others at least."""
    own: dict[str, Any] = {}
    if case.name.startswith("W3"):
        own = {"seed": 1}
    metrics = trained_here(case, own)
    assert metrics["score"]["after"]["mean"] is not None
    rare = next(iter(scores(metrics, "rare").values()))
    assert rare is not None or "rare" in notes_of(metrics)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run-data that the cases of `adapt` and of moved data have in common, and its run `runs/t`."""
    folder = tmp_path_factory.mktemp("trained")
    first = next(name for name in FOUND if (CASES / name / "run-data").is_dir())
    shutil.copytree(CASES / first / "run-data", folder / "run-data")
    with contextlib.chdir(folder / "run-data"):
        trained_here(folder / "run-data", {})
        load(Path("c.yaml"), {}).save(folder / "run-data" / "here" / "config.yaml")
    best = folder / "runs" / "t" / "best"
    shutil.copytree(folder / "run-data" / "here", best)
    shutil.copy(best / "config.yaml", best.parent / "config.yaml")
    return folder


def adapt(trained: Path, case: Path, *args: str) -> Seen:
    shutil.copytree(trained, case / "trained")
    return run_here(case, "adapt", "trained/runs/t", "--support", "s.csv", *args)


@of("G20-transfer-words")
def test_transfer_with_words_warns_of_nothing(case: Path, trained: Path) -> None:
    assert adapt(trained, case, "--transfer", "feature").status == 0


@of("G21-transfer-reg-large")
def test_transfer_tells_large_values_apart(case: Path, trained: Path) -> None:
    seen = adapt(trained, case, "--transfer", "model", "--set", "task.kind=regression", "--json")
    assert seen.status == 0, seen.text


@of("G23-transfer-single-class")
def test_transfer_names_the_only_class(case: Path, trained: Path) -> None:
    refused("'x'|\"x\"|\\bx\\b", never=(r"got 0\b",))(adapt(trained, case, "--transfer", "feature"))


@of("G28-transfer-reg-nan")
def test_transfer_names_too_large_labels_rows(case: Path, trained: Path) -> None:
    seen = adapt(trained, case, "--transfer", "model", "--set", "task.kind=regression")
    refused(r"row \d+", r"1e\+?300", never=("got others",))(seen)


@of("F15-moved-data")
def test_moved_data_keep_the_runs_statistics(case: Path, trained: Path) -> None:
    """Told the new place, or with the path edited in the run's own configuration: the same predictions."""
    shutil.copytree(trained, case / "trained")
    (case / "trained" / "run-data" / "d.csv").unlink()
    run_folder = "trained/runs/t"
    told = run_here(
        case, "evaluate", run_folder, "--data", "new.csv", "--predictions", "told.parquet", "--json"
    )
    assert told.status == 0, told.text
    config = case / run_folder / "best" / "config.yaml"
    text = config.read_text()
    old = next(
        line
        for line in text.splitlines()
        if line.strip().startswith("path: ") and line.endswith("d.csv")
    )
    config.write_text(text.replace(old, f"{old.partition('path: ')[0]}path: {case / 'new.csv'}"))
    edited = run_here(case, "evaluate", run_folder, "--predictions", "edited.parquet", "--json")
    assert edited.status == 0, edited.text
    assert told.told["tasks"] == edited.told["tasks"]
    assert pq.read_table(case / "told.parquet").equals(pq.read_table(case / "edited.parquet"))
