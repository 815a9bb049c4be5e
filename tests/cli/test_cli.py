"""The commands on a small run, and what each mistake is answered with; no Ray here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from raymtl.cli import main
from raymtl.data.base import Arrays
from raymtl.data.episodes import build_episodes
from raymtl.evaluation.evaluate import evaluate_folder, load_model
from raymtl.storage import formats
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from tests.conftest import experiment
from tests.data.own import write_pictures
from tests.narrowing import shared_inputs

QUICKSTART = Path(__file__).parent.parent.parent / "tune_configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]) -> Path:
    """A run folder with a trained model, as `raymtl train` leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    chosen = experiment(train__steps=4, train__eval_every=2, name="small")
    (folder / "best").mkdir(parents=True)
    chosen.save(folder / "config.yaml")
    context = TrainContext(lambda metrics: None, lambda row: None)
    train_loop(chosen, arrays, local_batches(chosen, arrays), context, folder / "best")
    evaluate_folder(folder / "best", arrays, chosen.data)
    rows = [
        {
            "number": 0,
            "state": "complete",
            "step": 4,
            "seconds": 1.0,
            "reason": None,
            "learner.inner_lr": 0.05,
            "val.score": 0.2,
        },
        {
            "number": 1,
            "state": "failed",
            "step": 0,
            "seconds": None,
            "reason": "nan",
            "learner.inner_lr": 0.5,
            "val.score": None,
        },
    ]
    formats.write_rows(folder / "trials.parquet", rows)
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """Exit status of `raymtl ARGS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["raymtl", *args])
    try:
        main()
    except SystemExit as status:
        return int(status.code or 0)
    return 0


def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert call(monkeypatch, *args) == 0
    return capsys.readouterr().out


def mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert call(monkeypatch, *args) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_dry_run_tells_the_plan_and_makes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = answer(
        monkeypatch,
        capsys,
        "tune",
        str(QUICKSTART),
        "--dry-run",
        "--json",
        "--set",
        f"output={tmp_path / 'o'}",
    )
    plan = json.loads(out)
    assert plan["search"]["trials"] >= 12
    assert plan["search"]["space"]["sharing.name"]["choice"] == ["hard", "soft", "cross_stitch"]
    assert plan["train"]["workers"] == 2
    names = [each["name"] for each in plan["trainings"]]
    assert names == [
        "trials",
        "winner",
        "default",
        "joint",
        "single-left",
        "single-right",
        "single-sum",
    ]
    assert plan["total"]["trainings"] == plan["search"]["trials"] + 10
    assert plan["total"]["outer_steps"] == plan["total"]["trainings"] * plan["train"]["steps"]
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("tune", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (
            ("tune", str(QUICKSTART), "--set", "learner.inner_lrr=1"),
            "--set: learner.inner_lrr: unknown key. Did you mean learner.inner_lr",
        ),
        (
            ("tune", str(QUICKSTART), "--set", "learner.inner_lr"),
            "--set: expected key=value, got 'learner.inner_lr'",
        ),
        (
            ("tune", str(QUICKSTART), "--set", "learner.inner_lr=[1"),
            "--set learner.inner_lr: expected a YAML value",
        ),
        (
            ("tune", str(QUICKSTART), "--set", "train.steps=none"),
            "train.steps: expected a valid integer",
        ),
        (
            ("train", str(QUICKSTART), "--resume", "--set", "output=nowhere"),
            "--resume: expected a run of `raymtl train` with this very configuration",
        ),
        (
            (
                "train",
                str(QUICKSTART),
                "--set",
                "train.workers=8",
                "--set",
                "train.cpus_per_worker=999",
            ),
            "got room for 0 on 1 machine",
        ),
        (
            ("tune", str(QUICKSTART), "--set", "tune.cpus_per_trial=999"),
            "tune.cpus_per_trial: a trial takes 1 x 999 CPU",
        ),
        (("evaluate", "nowhere"), "nowhere: expected a run folder"),
        (("adapt", "nowhere"), "nowhere: expected a run folder"),
        (("trials", "nowhere"), "nowhere: expected a run folder"),
        (("report", "nowhere"), "nowhere: expected a run folder"),
    ],
)
def test_mistakes_exit_with_2_and_one_sentence(
    args: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    message = mistake(monkeypatch, capsys, *args)
    assert says in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_never_imports_ray() -> None:
    code = "import sys; sys.argv[1:] = ['tune', 'none.yaml']\nimport raymtl.cli\ntry: raymtl.cli.main()\nfinally: print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (2, "False")


def test_trials_lists_and_shows_one(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = answer(monkeypatch, capsys, "trials", str(run))
    assert "complete" in listed
    assert "failed" in listed
    assert (
        json.loads(answer(monkeypatch, capsys, "trials", str(run), "--json"))[0]["learner.inner_lr"]
        == 0.05
    )
    assert "reason: nan" in answer(monkeypatch, capsys, "trials", str(run), "1")
    assert "expected 0 to 1, got 7" in mistake(monkeypatch, capsys, "trials", str(run), "7")


def test_evaluate_prints_scores(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says that they are not transductive."""
    out = answer(monkeypatch, capsys, "evaluate", str(run), "--episodes", "4", "--split", "val")
    assert "left accuracy" in out
    assert "4 val episodes were scored; an episode is" in out and "Not transductive" in out
    assert (
        json.loads(answer(monkeypatch, capsys, "evaluate", str(run), "--episodes", "3", "--json"))[
            "episodes"
        ]
        == 3
    )
    assert "expected val or test" in mistake(
        monkeypatch, capsys, "evaluate", str(run), "--split", "train"
    )


def test_report_writes_a_page(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "report.html" in answer(monkeypatch, capsys, "report", str(run))
    assert (run / "report.html").stat().st_size > 1e6


def test_adapt_to_a_held_out_domain(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads(answer(monkeypatch, capsys, "adapt", str(run), "--episode", "3", "--json"))
    folder = Path(told["folder"])
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    assert len(rows) == told["predicted_examples"] == 10
    assert {"left.accuracy", "right.accuracy", "sum.r2", "sum.mae", "sum.rmse", "sum.rrmse"} <= set(
        told["scores"]
    )
    hits = sum(row["left.after"] == row["left.target"] for row in rows) / 10
    assert told["scores"]["left.accuracy"][1] == pytest.approx(hits)


def support_file(path: Path, run: Path, arrays: Arrays, **changes: Any) -> Path:
    """A support set as a user writes one: ten labelled pictures, some labels missing, ten more to be predicted."""
    chosen, _, _ = load_model(run / "best")
    (episode,), _ = build_episodes(chosen.data, arrays, seed=5, split="test", step=0, indices=[0])
    unlabelled = [None] * 10
    columns = {
        "input": shared_inputs(episode.support)[0].flatten(1).tolist()
        + shared_inputs(episode.query)[0].flatten(1).tolist()
    }
    for name, target in episode.support.targets.items():
        columns[name] = target[0].tolist() + unlabelled
    columns["sum"][2] = None
    columns |= changes
    pq.write_table(
        pa.table({key: value for key, value in columns.items() if value is not None}), path
    )
    return path


def test_adapt_to_a_file_equals_adapting_by_hand(
    run: Path,
    arrays: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file = support_file(tmp_path / "mine.parquet", run, arrays)
    told = json.loads(
        answer(
            monkeypatch, capsys, "adapt", str(run), "--support", str(file), "--steps", "2", "--json"
        )
    )
    assert (told["support_examples"], told["predicted_examples"]) == (10, 10)
    chosen, algorithm, params = load_model(run / "best")
    (episode,), _ = build_episodes(chosen.data, arrays, seed=5, split="test", step=0, indices=[0])
    inputs = shared_inputs(episode.support)[0].float() / 255
    targets = {name: target[0] for name, target in episode.support.targets.items()}
    mask = torch.arange(10) != 2
    with torch.enable_grad():
        theta = {name: value.clone().requires_grad_() for name, value in params.items()}
        for _ in range(2):
            predicted = algorithm.predict(theta, inputs)
            losses = [
                task.loss(predicted[task.name], targets[task.name])[
                    mask if task.name == "sum" else slice(None)
                ].mean()
                for task in algorithm.tasks
            ]
            grads = torch.autograd.grad(torch.stack(losses).sum(), list(theta.values()))
            theta = {
                n: (v - 0.05 * g).detach().requires_grad_()
                for (n, v), g in zip(theta.items(), grads, strict=True)
            }
    saved = load_file(Path(told["folder"]) / "model.safetensors")
    for name, value in theta.items():
        torch.testing.assert_close(saved[name], value.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input": None}, "expected the column `input`"),
        ({"left": [0] * 19 + [10]}, "row 19, column `left`: expected a class from 0 to 9, got 10"),
        ({"input": [[None] * 256] * 20}, "row 0, column `input`: expected numbers, got None"),
        ({"sum": [float("inf")] * 20}, "row 0, column `sum`: expected a number or null, got inf"),
        ({"sum": ["x"] * 20}, "row 0, column `sum`: expected a number or null, got 'x'"),
        ({"input": [[0] * 3] * 20}, "row 0, column `input`: expected a list of 256 numbers"),
        ({"input": [[-1] * 256] * 20}, "expected numbers from 0 to 255"),
        (
            {"left": [None] * 20, "right": [None] * 20, "sum": [None] * 20},
            "expected rows with labels",
        ),
        ({"left": None, "right": None, "sum": None}, "at least one of the tasks"),
    ],
)
def test_support_files_that_do_not_fit_are_named(
    changes: dict[str, Any],
    says: str,
    run: Path,
    arrays: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file = support_file(tmp_path / "bad.parquet", run, arrays, **changes)
    message = mistake(monkeypatch, capsys, "adapt", str(run), "--support", str(file))
    assert says in message
    assert str(file) in message


def test_support_files_that_are_none(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "text.parquet").write_text("hello")
    assert "expected a Parquet file" in mistake(
        monkeypatch, capsys, "adapt", str(run), "--support", str(tmp_path / "text.parquet")
    )
    assert "no such file" in mistake(
        monkeypatch, capsys, "adapt", str(run), "--support", str(tmp_path / "none")
    )


def test_unlearnable_data_leave_no_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = write_pictures(tmp_path / "pictures")
    config = tmp_path / "own.yaml"
    config.write_text(
        f"output: {tmp_path / 'runs'}\ndata: {{name: files, path: {pictures}, size: 8, tasks: {{folder1: {{}}}}}}\n"
        "learner: {name: maml, inner_steps: 0}\n"
    )
    for path in sorted(pictures.rglob("*.png"))[:6]:
        path.write_bytes(b"none")
    monkeypatch.setattr(sys, "argv", ["raymtl", "train", str(config)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "data.max_corrupt: 6 of 60 pictures cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
