"""`raymtl adapt`: the same bits in another process, knowledge carried to a new task, and what it is refused for."""

import json
import os
import re
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

from raymtl import run_folder
from raymtl.adaptation.adapt import adapt_run
from raymtl.adaptation.new_data import TransferRequest
from raymtl.adaptation.request import AdaptationRequest
from raymtl.adaptation.transfer import parse_transfer
from raymtl.adaptation.transfer_run import transfer_run
from raymtl.adaptation.transferred import load_network
from raymtl.data.base import Arrays
from raymtl.evaluation.evaluate import load_model
from raymtl.learners import MAML
from raymtl.reporting.terminal import View
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import UserError
from tests.cli.test_cli import answer, mistake
from tests.conftest import experiment
from tests.processes import run_on

DOCS = Path(__file__).parent.parent.parent / "docs" / "transfer.md"


def trained(folder: Path, arrays: Arrays, **values: Any) -> Path:
    """A run folder as `raymtl train` leaves it, of two steps."""
    chosen = experiment(
        **{"train__steps": 2, "train__eval_every": 2, "evaluate__val_episodes": 2} | values
    )
    (folder / "best").mkdir(parents=True)
    chosen.save(folder / "config.yaml")
    context = TrainContext(lambda metrics: None, lambda row: None)
    train_loop(chosen, arrays, local_batches(chosen, arrays), context, folder / "best")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "small", arrays, data__shots=2)


def new_task(
    path: Path, arrays: Arrays, classes: int = 3, number: int = 24, **changes: Any
) -> Path:
    """Pictures of glyphs on an empty canvas, labelled with something that no run knows; six of them unlabelled."""
    inputs = []
    for index in range(number):
        canvas = torch.zeros(16, 16)
        canvas[4:12, 4:12] = torch.from_numpy(arrays["glyphs"][index]).float()
        inputs.append(canvas.flatten().tolist())
    labels = [index % classes if index < number - 6 else None for index in range(number)]
    columns = {"input": inputs, "mine": labels} | changes
    pq.write_table(
        pa.table({key: value for key, value in columns.items() if value is not None}), path
    )
    return path


def carried(
    run: Path,
    way: str,
    support: Path | None = None,
    name: str | None = None,
    episode: int = 0,
    **values: Any,
) -> dict[str, Any]:
    chosen = parse_transfer(
        way, {"optimiser.steps": 20} | {k.replace("__", "."): v for k, v in values.items()}
    )
    request = AdaptationRequest(run, support, episode=episode, name=name)
    return transfer_run(TransferRequest(request, chosen), View("test"))


def elsewhere(code: str, folder: Path, *args: str) -> str:
    """What a fresh process prints for the code."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def adapt_there(_: int, runs: list[Path]) -> None:
    """What the other process does."""
    torch.set_num_threads(1)
    for run in runs:
        adapt_run(AdaptationRequest(run, episode=2, name="there"))


@pytest.mark.slow
def test_another_process_adapts_bit_identically(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Of every kind of learner: gradient steps, prototypes, a displacement, a context; parameters from memory here."""
    learners = {
        "maml": {},
        "reptile": {},
        "cavia": {},
        "protonet": {"data__tasks": ["left", "right"]},
    }
    for name, values in learners.items():
        trained(tmp_path / name, arrays, learner__name=name, encoder__hidden=[12], **values)
        adapt_run(AdaptationRequest(tmp_path / name, episode=2, name="here"))
    run_on(1, adapt_there, [tmp_path / name for name in learners])
    for name in learners:
        here, there = (tmp_path / name / "adapted" / where for where in ("here", "there"))
        first, second = (load_file(folder / "model.safetensors") for folder in (here, there))
        assert set(first) == set(second)
        assert all(torch.equal(first[key], second[key]) for key in first), name
        rows = [
            pq.read_table(folder / "predictions.parquet").to_pylist() for folder in (here, there)
        ]
        assert rows[0] == rows[1]
        assert any(row["left.probability"] > 0 for row in rows[0])
        unadapted = load_model(tmp_path / name / "best")[2]
        assert any(
            key not in unadapted or not torch.equal(first[key], unadapted[key]) for key in first
        )


def transfer_there(_: int, run: Path, support: Path, folder: Path, said: Path) -> None:
    """What the other process does."""
    torch.set_num_threads(1)
    carried(run, "model", support, "there")
    network, _task = load_network(folder)
    torch.manual_seed(4)
    torch.save(network(torch.rand(5, 1, 16, 16)), said)


def test_another_process_transfers_bit_identically(
    run: Path, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    file = new_task(tmp_path / "mine.parquet", arrays)
    told = carried(run, "model", file, "here")
    run_on(1, transfer_there, run, file, Path(told["folder"]), tmp_path / "said.pt")
    first, second = (
        load_file(run / "adapted" / n / "model.safetensors") for n in ("here", "there")
    )
    assert first and all(torch.equal(first[key], second[key]) for key in first)
    rows = [
        pq.read_table(run / "adapted" / n / "predictions.parquet").to_pylist()
        for n in ("here", "there")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 6
    torch.manual_seed(4)
    network, task = load_network(Path(told["folder"]))
    assert task.out_features == 3
    assert torch.equal(
        torch.load(tmp_path / "said.pt", weights_only=True), network(torch.rand(5, 1, 16, 16))
    )


BLOCKS = [
    block
    for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    if "load_file" in block
]


@pytest.mark.parametrize(
    ("block", "encoder"),
    [(BLOCKS[0], {"encoder__hidden": [192, 64]}), (BLOCKS[1], {"encoder__name": "conv"})],
    ids=["mlp", "conv"],
)
def test_the_docs_load_results_without_raymtl(
    block: str, encoder: dict[str, Any], arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    run = trained(tmp_path / "runs" / "quickstart", arrays, **encoder)
    carried(run, "model", new_task(tmp_path / "mine.parquet", arrays), None)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    alone = (
        "import sys\nsys.modules['raymtl'] = None\nimport torch\ntorch.set_num_threads(1)\n" + block
    )
    elsewhere(
        alone + "torch.manual_seed(4)\ntorch.save(network(torch.rand(5, 1, 16, 16)), 'said.pt')\n",
        tmp_path,
    )
    network, _ = load_network(run / "adapted" / "mine")
    torch.manual_seed(4)
    said = network(torch.rand(5, 1, 16, 16))
    assert torch.equal(torch.load(tmp_path / "said.pt", weights_only=True), said)
    assert said.std() > 0


def test_queries_score_what_supports_teach(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = answer(
        monkeypatch, capsys, "adapt", str(run), "--episode", "1", "--transfer", "feature", "--json",
        "--set", "optimiser.steps=30", "--set", "task.name=right",
    )  # fmt: skip
    told = json.loads(out)
    folder = Path(told["folder"])
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    assert (told["trained_on"], told["held_out"], len(rows)) == (15, 5, 10)
    for when in ("before", "after"):
        hits = sum(row[f"right.{when}"] == row["right.target"] for row in rows) / 10
        assert told["test"][when]["accuracy"]["mean"] == pytest.approx(hits)
    curve = pq.read_table(folder / "curve.parquet").to_pylist()
    assert [row["step"] for row in curve] == list(range(1, 31))
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert told["step"] in (10, 20, 30)
    source = load_model(run / "best")[2]
    saved = load_file(folder / "model.safetensors")
    assert torch.equal(
        saved["model.encoders.0.stages.0.1.weight"], source["model.encoders.0.stages.0.1.weight"]
    )
    assert set(json.loads((folder / "scores.json").read_text())) >= {
        "task",
        "step",
        "validation",
        "test",
    }
    text = answer(
        monkeypatch,
        capsys,
        "adapt",
        str(run),
        "--transfer",
        "feature",
        "--set",
        "optimiser.steps=10",
    )
    assert "feature transfer to" in text and "accuracy" in text and "±" in text


def test_numbers_come_back_in_their_own_unit(
    run: Path, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    values = [1000.0 + 50 * (index % 3) if index < 18 else None for index in range(24)]
    file = new_task(tmp_path / "numbers.parquet", arrays, mine=values)
    told = carried(
        run,
        "model",
        file,
        task__kind="regression",
        task__loss={"name": "huber"},
        optimiser__steps=40,
    )
    rows = pq.read_table(Path(told["folder"]) / "predictions.parquet").to_pylist()
    assert all(900 < row["mine.after"] < 1200 for row in rows)
    assert rows[0]["mine.before"] is None and rows[0]["mine.target"] is None
    network, task = load_network(Path(told["folder"]))
    table = pq.read_table(file).to_pylist()
    inputs = torch.tensor([row["input"] for row in table if row["mine"] is None]).reshape(
        -1, 1, 16, 16
    )
    with torch.no_grad():
        again = task.decode(network(inputs.round() / 255))
    assert again.tolist() == pytest.approx([row["mine.after"] for row in rows], rel=1e-6)


@pytest.mark.parametrize("adapt_teacher", [False, True])
def test_a_student_may_have_another_kind(adapt_teacher: bool, run: Path) -> None:
    """It learns a task that the run has."""
    values = {"student__name": "conv", "student__channels": [4], "adapt_teacher": adapt_teacher}
    told = carried(run, "target", None, f"student-{adapt_teacher}", 2, **values)
    saved = load_file(Path(told["folder"]) / "model.safetensors")
    assert saved["model.encoders.0.stages.0.0.weight"].shape == (4, 1, 3, 3)
    network, task = load_network(Path(told["folder"]))
    assert task.out_features == 10
    assert network(torch.rand(2, 1, 16, 16)).shape == (2, 10)


def test_another_architecture_is_built_again_from_its_folder(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    run = trained(tmp_path / "stitched", arrays, sharing__name="cross_stitch", encoder__hidden=[6])
    told = carried(
        run, "model", new_task(tmp_path / "mine.parquet", arrays), reads="right", l2_sp=0
    )
    network, _ = load_network(Path(told["folder"]))
    before = load_model(run / "best")[1].model
    saved = load_file(Path(told["folder"]) / "model.safetensors")
    assert set(saved) - {"model.heads.mine.weight", "model.heads.mine.bias"} == {
        f"model.{name}" for name, _ in before.named_parameters() if not name.startswith("heads.")
    }
    assert network.body.reads == "right"
    assert network(torch.rand(2, 1, 16, 16)).shape == (2, 3)


def test_transfer_overwrites_nothing(
    run: Path, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """A failure leaves nothing."""
    file = new_task(tmp_path / "twice.parquet", arrays)
    first = carried(run, "feature", file)["folder"]
    stamp = (Path(first) / "model.safetensors").read_bytes()
    second = carried(run, "feature", file, optimiser__seed=1)["folder"]
    assert (Path(first).name, Path(second).name) == ("twice", "twice-2")
    assert (Path(first) / "model.safetensors").read_bytes() == stamp
    adapted = [adapt_run(AdaptationRequest(run, episode=3, name="episode")) for _ in range(2)]
    assert [Path(told["folder"]).name for told in adapted] == ["episode", "episode-2"]

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        run_folder.publish_folder(run / "adapted", "failed", fail)
    assert not [path for path in (run / "adapted").iterdir() if "failed" in path.name]


@pytest.mark.parametrize(
    ("changes", "values", "says"),
    [
        ({"mine": [0.5] * 24}, {}, "task.kind: classification takes classes"),
        ({"mine": [1] * 24}, {}, "task.name: expected labels of at least two classes, got 1 alone"),
        (
            {"mine": [0, 30] + [None] * 22},
            {},
            "task.num_classes: expected an example for each of the 31 classes",
        ),
        (
            {"mine": [None] * 24},
            {},
            "column `mine`: expected rows with labels to learn from, got none",
        ),
        ({"mine": ["a"] * 24}, {}, "row 0, column `mine`: expected a number or null, got 'a'"),
        ({"mine": None}, {}, "expected the column `input` and one of labels, got ['input']"),
        (
            {},
            {"task.name": "yours"},
            "task.name: expected one of the columns ['mine'], got 'yours'",
        ),
        ({"more": [1] * 24}, {}, "expected task.name to say which of the columns ['mine', 'more']"),
        ({"input": [[0] * 9] * 24}, {}, "row 0, column `input`: expected a list of 256 numbers"),
        (
            {"input": [], "mine": pa.array([], pa.int64())},
            {},
            "column `mine`: expected rows with labels",
        ),
        ({}, {"held_out": 0.05}, "held_out: expected two examples at least to select by"),
        (
            {},
            {"reads": "middle"},
            "reads: expected one of the trained tasks ['left', 'right', 'sum'], got 'middle'",
        ),
    ],
)
def test_new_tasks_that_cannot_be_are_refused(
    changes: dict[str, Any],
    values: dict[str, Any],
    says: str,
    run: Path,
    arrays: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file = new_task(tmp_path / "bad.parquet", arrays, **changes)
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    message = mistake(
        monkeypatch,
        capsys,
        "adapt",
        str(run),
        "--support",
        str(file),
        "--transfer",
        "feature",
        *sets,
        "--name",
        "bad",
    )
    assert says in message
    assert message.count("\n") == 1
    assert not (run / "adapted" / "bad").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ("--transfer", "target"),
            "student.name: expected the encoder that is to learn, such as mlp, got none",
        ),
        (
            ("--transfer", "model", "--set", "l2_sp=-1"),
            "--set l2_sp: expected greater than or equal to 0, got -1",
        ),
        (
            ("--transfer", "target", "--set", "temperature=0"),
            "--set temperature: expected greater than 0, got 0",
        ),
        (
            ("--transfer", "tranfer"),
            "--transfer: expected one of feature, model, target, got 'tranfer'",
        ),
        (("--transfer", "feature", "--steps", "3"), "--steps: expected none with --transfer"),
        (
            ("--set", "l2_sp=1"),
            "--set: expected --transfer, whose values it sets, got l2_sp=1 alone",
        ),
        (
            ("--transfer", "feature", "--set", "task.name=middle"),
            "task.name: expected one of the tasks of an episode",
        ),
        (
            ("--transfer", "feature", "--name", "../up"),
            "--name: expected a plain name for a folder",
        ),
        (
            (
                "--transfer",
                "target",
                "--set",
                "student.name=conv",
                "--set",
                "student.channels=[4,4,4,4,4,4]",
            ),
            "student: encoder.channels: 6 stages halve a picture",
        ),
        (
            ("--transfer", "target", "--set", "student.name=mlp", "--set", "task.num_classes=12"),
            "match: predictions takes as many classes as the trained model has, 10, got task.num_classes: 12",
        ),
    ],
)
def test_transfers_that_cannot_be_are_refused(
    args: tuple[str, ...],
    says: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = set((run / "adapted").glob("*"))
    message = mistake(monkeypatch, capsys, "adapt", str(run), *args)
    assert says in message
    assert message.count("\n") == 1
    assert set((run / "adapted").glob("*")) == before


def test_teachers_cannot_teach_unknown_tasks(
    run: Path, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    file = new_task(tmp_path / "mine.parquet", arrays)
    with pytest.raises(
        UserError, match="a trained model that has the task 'mine' too, got one without"
    ):
        carried(run, "target", file, student__name="mlp")
    told = carried(run, "target", file, student__name="mlp", match="features")
    assert told["task"]["num_classes"] == 3


def test_prototypes_teach_after_adapting_alone(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    run = trained(
        tmp_path / "proto",
        arrays,
        learner__name="protonet",
        data__tasks=["left", "right"],
        data__shots=2,
    )
    with pytest.raises(
        UserError, match="adapt_teacher: expected true, since the trained model predicts only after"
    ):
        carried(run, "target", student__name="mlp")
    assert carried(run, "target", student__name="mlp", adapt_teacher=True)["test"]["before"] is None


def test_a_run_that_is_not_finished_is_said(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    experiment().save(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="expected a trained model, got none yet"):
        carried(tmp_path, "feature")


@pytest.mark.parametrize("section", ["encoder", "student"])
def test_a_norm_whose_predictions_hang_together_is_refused(
    section: str, run: Path, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    norm = {"name": "conv", "channels": [4], "norm": "batch"}
    if section == "encoder":
        run = trained(
            tmp_path / "normed", arrays, **{f"encoder__{key}": value for key, value in norm.items()}
        )
    with pytest.raises(
        UserError,
        match=rf"{section}\.norm: expected one that predicts of each example alone.*got batch",
    ):
        carried(run, "target", student=norm if section == "student" else {"name": "mlp"})


def test_models_predicting_by_their_learner_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = MAML.predict
    shifted = lambda *args: {name: of + 1 for name, of in plain(*args).items()}  # noqa: E731
    monkeypatch.setattr(MAML, "predict", shifted)
    with pytest.raises(UserError, match="predicts through parameters of the learner too"):
        carried(run, "feature")


def test_tasks_with_own_inputs_are_transferred(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """From and to."""
    mixed = {"data__name": "several", "data__episodes": "together", "encoder__hidden": [6]}
    chosen = experiment(**mixed, train__steps=2, train__eval_every=2)
    folder = tmp_path / "several" / "best"
    folder.mkdir(parents=True)
    own = chosen.data.load()
    train_loop(
        chosen,
        own,
        local_batches(chosen, own),
        TrainContext(lambda _: None, lambda _: None),
        folder,
    )
    told = carried(tmp_path / "several", "feature", task__name="pair_number", reads="scene_left")
    assert told["task"]["num_classes"] == 5
    assert told["test"]["before"]["accuracy"]["mean"] <= 1
