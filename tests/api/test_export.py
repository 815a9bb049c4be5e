"""Exported models: their files say what the model says, where raymtl and Ray cannot be imported."""

import json
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import raymtl
from raymtl.api import checks
from raymtl.api.exporting.files import Format
from raymtl.api.exporting.outputs import output_of
from raymtl.api.model import Model
from raymtl.config import Experiment
from raymtl.evaluation.thresholds import decided_by
from raymtl.features.network import load_network
from raymtl.prediction.trained import Trained
from raymtl.storage import formats
from raymtl.types import UserError
from tests.api.exports import (
    CLOSE,
    FORMATS,
    assert_alike,
    assert_exports,
    digits,
    model_of,
    outputs_of,
    timm_weights,
)
from tests.api.test_model import episode_of, trained
from tests.conftest import experiment, perturbed
from tests.narrowing import checked, shared_inputs

pytest.importorskip("onnxruntime", reason="the extra raymtl[export] is not installed")

ROOT = Path(__file__).parents[2]
CITIES = ("Bern", "Basel", "Chur", None)
ISOLATED = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("raymtl", "ray"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Without())
"""


def flats(path: Path, rows: int, seed: int) -> Path:
    """A table with every kind of column that a graph can read, and of labels that it predicts."""
    draw = np.random.default_rng(seed)
    area = [None if draw.random() < 0.1 else float(draw.uniform(20, 120)) for _ in range(rows)]
    start = datetime(2001, 2, 3)
    columns = {
        "city": [CITIES[draw.integers(4)] for _ in range(rows)],
        "area": area,
        "built": [start + timedelta(days=int(draw.integers(7000))) for _ in range(rows)],
        "place": draw.normal(47, 0.1, (rows, 2)).tolist(),
        "pets": (draw.random(rows) < 0.5).tolist(),
        "kind": [("old", "new", "odd")[draw.integers(3)] for _ in range(rows)],
        "rent": [1000.0 + 20 * (size or 70) for size in area],
        "furnished": [("yes", "no")[draw.integers(2)] for _ in range(rows)],
        "tags": [("a", "b", "a;b")[draw.integers(3)] for _ in range(rows)],
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run on such a table."""
    folder = tmp_path_factory.mktemp("flats")
    tasks: dict[str, Any] = {"rent": {}, "furnished": {}, "tags": {"separator": ";"}, "kind": {}}
    data = {"name": "files", "path": str(flats(folder / "flats.parquet", 200, 0)), "tasks": tasks}
    chosen = Experiment().override(
        {
            "name": "flats",
            "data": {**data, "missing_inputs": "mean"},
            "encoder.name": "mlp",
            "encoder.hidden": [8],
            "learner.inner_steps": 0,
            "train.steps": 3,
            "train.eval_every": 3,
        }
    )
    return trained(folder / "run", chosen.resolve())


@pytest.fixture(scope="module")
def exported(run: Path) -> dict[Format, Path]:
    return {to: raymtl.export(run, to) for to in FORMATS}


def rows_for(about: dict[str, Any], table: pa.Table) -> dict[str, np.ndarray]:
    """A table as the graph reads it, by what model.json says alone."""
    inputs = {}
    for each in about["inputs"]:
        columns = []
        for name in each["columns"]:
            values = table[name].to_pylist()
            if each["name"] == "categories":
                codes = each["codes"][name]
                columns.append([[codes.get(value, each["unknown"])] for value in values])
            elif each["name"] == "vectors":
                columns.append(values)
            else:
                columns.append([[as_number(value)] for value in values])
        inputs[each["name"]] = np.concatenate([np.array(c) for c in columns], 1).astype(
            each["dtype"]
        )
    return inputs


def as_number(value: Any) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, datetime):
        return (value - datetime(1970, 1, 1)) / timedelta(days=1)
    return float(value)


@pytest.mark.parametrize("to", FORMATS)
def test_raw_rows_are_predicted_as_raymtl_predicts_the_file(
    to: Format, run: Path, exported: dict[Format, Path], tmp_path: Path
) -> None:
    """Missing numbers and cities, dates and vectors among them."""
    path = flats(tmp_path / "new.parquet", 30, 1)
    table = pq.read_table(path)
    cities = [None, *table["city"].to_pylist()[1:]]
    table = table.set_column(0, "city", pa.array(cities))
    pq.write_table(table, path)
    about = formats.read_json(exported[to] / "model.json")
    (file,) = [one for one in exported[to].iterdir() if one.suffix in (".pt2", ".onnx")]
    found = outputs_of(file, rows_for(about, table))
    expected = raymtl.load_model(run).predict(path)
    assert [each["name"] for each in about["inputs"]] == ["numbers", "vectors", "categories"]
    for each in about["outputs"]:
        name = each["name"]
        if each["kind"] == "regression":
            truth = expected[f"{name}.after"].to_numpy()
            np.testing.assert_allclose(found[name], truth, rtol=CLOSE)
            continue
        for place, label in enumerate(each["classes"]):
            truth = expected[f"{name}.probability.{label}"].to_numpy()
            np.testing.assert_allclose(found[name][:, place], truth, atol=CLOSE)


@pytest.mark.parametrize("to", FORMATS)
def test_the_lines_of_the_card_run_without_raymtl(to: Format, exported: dict[Format, Path]) -> None:
    text = (exported[to] / "README.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(lines.splitlines()) == 3
    done = isolated(lines + "print(len(outputs))", exported[to])
    assert done.stdout.strip() == "4", done.stderr


@pytest.mark.parametrize("to", FORMATS)
def test_the_lines_of_the_documentation_run_without_raymtl(
    to: Format, exported: dict[Format, Path]
) -> None:
    text = (ROOT / "docs" / "export.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    name = "model.pt2" if to == "torch" else "model.onnx"
    (block,) = [own for own in blocks if name in own]
    done = isolated(block + "print(json.dumps(about))", exported[to])
    assert json.loads(done.stdout) == formats.read_json(exported[to] / "model.json"), done.stderr


def isolated(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in the folder of an export where neither raymtl nor Ray can be imported."""
    command = [sys.executable, "-I", "-c", f"{ISOLATED}\nimport json\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_the_card_has_scores_hashes_and_no_paths(run: Path, exported: dict[Format, Path]) -> None:
    text = (exported["onnx"] / "README.md").read_text()
    score = raymtl.open_run(run).scores["tasks"]["rent"]["mae"]["after"]
    assert (
        f"| rent | mae | {score['mean']:.4g} | {score['low']:.4g} to {score['high']:.4g} |" in text
    )
    assert "files: flats.parquet" in text
    for folder in exported.values():
        listed = subprocess.run(
            ["sha256sum", "--check", "--ignore-missing"],
            input="\n".join(re.findall(r"^[0-9a-f]{64}  model\.\w+$", (folder / "README.md").read_text(), re.M)),
            cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert listed.stdout.count("OK") == 2
        for file in folder.iterdir():
            assert str(run.parent).encode() not in file.read_bytes()
            assert str(ROOT).encode() not in file.read_bytes()


COVERING = [("conv", "cross_stitch"), ("mlp", "mmoe"), ("lenet", "mtan")]


@pytest.mark.parametrize("encoder, sharing", COVERING)
def test_pictures_are_predicted_as_the_model_does(
    encoder: str, sharing: str, tmp_path: Path
) -> None:
    assert_exports(digits(encoder, sharing, tmp_path), tmp_path, FORMATS)


def test_features_of_a_frozen_network_are_inside(tmp_path: Path) -> None:
    """Of pictures in the user's files, whose decoding is outside."""
    draw = np.random.default_rng(0)
    for number in range(40):
        kind = tmp_path / "pictures" / ("cat", "dog")[number % 2]
        kind.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (16, 20, 3), np.uint8)
        Image.fromarray(pixels).save(kind / f"{number}.png")
    encoder = {"name": "timm", "model": "test_resnet", "frozen": True, "size": 32}
    data = {
        "name": "files",
        "path": str(tmp_path / "pictures"),
        "tasks": {"label": {"column": "folder"}},
        "size": 16,
    }
    chosen = Experiment().override(
        {"data": data, "encoder": {**encoder, "weights": timm_weights(tmp_path)}}
    )
    chosen = chosen.override({"learner.inner_steps": 0}).resolve()
    algorithm = chosen.build(pretrained=False)
    params = perturbed(algorithm)
    model = Model(Trained(chosen, algorithm, params, network=load_network(chosen)))
    folder = raymtl.export(model, "torch", tmp_path / "out")
    pictures = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    assert_alike(folder / "model.pt2", model, pictures, {"pictures": pictures.numpy()})
    text = (folder / "README.md").read_text()
    assert "a picture is read as red, green and blue and resized (bilinear" in text
    assert "the probability of each class: cat, dog" in text


def test_thresholds_of_decisions_are_told(run: Path, tmp_path: Path) -> None:
    model = raymtl.load_model(run)
    algorithm = model._algorithm
    logits = model(torch.randn(50, *model.experiment.data.input_shape))["furnished"]
    middle = float(logits.detach().median())
    decided = decided_by(algorithm, {"furnished": [middle], "tags": [None, 0.1, None]})
    folder = raymtl.export(
        Model(Trained(model.experiment, decided, dict(model.params))), "torch", tmp_path / "out"
    )
    about = {each["name"]: each for each in formats.read_json(folder / "model.json")["outputs"]}
    assert "yes_above" not in about["kind"] and about["tags"]["yes_above"][::2] == [0.5, 0.5]
    (task,) = [each for each in decided.tasks if each.name == "furnished"]
    probabilities = output_of(task, logits.double())[:, 1]
    assert torch.equal(probabilities > about["furnished"]["yes_above"][0], task.decode(logits) == 1)


@pytest.fixture(scope="module")
def few_shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model predicts nothing before it has read a support set."""
    chosen = experiment(
        learner__name="protonet", data__tasks=["left", "right"], train__steps=2, train__eval_every=2
    )
    return trained(tmp_path_factory.mktemp("runs") / "small", chosen)


def test_a_model_that_must_adapt_is_exported_when_it_has(few_shot: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"learner\.name: protonet .* Adapt it first"):
        raymtl.export(few_shot, "torch")
    assert not (few_shot / "exported").exists()
    adapted = raymtl.adapt(few_shot, episode=1)
    folder = raymtl.export(adapted.folder, "torch", tmp_path / "adapted")
    assert "was not scored" in (folder / "README.md").read_text()
    model = checked(adapted.model, raymtl.Model)
    _, query = episode_of(few_shot)
    pictures = (shared_inputs(query) * 255).round().to(torch.uint8)
    if shared_inputs(query).dtype == torch.uint8:
        pictures = shared_inputs(query)
    assert_alike(folder / "model.pt2", model, pictures, {"pictures": pictures.numpy()})


def test_an_output_is_never_written_over(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    for place in ("there", "file"):
        with pytest.raises(UserError, match="--output: expected a folder that is yet to be made"):
            raymtl.export(run, "torch", tmp_path / place)
    with pytest.raises(UserError, match=r"file/new: cannot be made \(Not a directory\)"):
        raymtl.export(run, "torch", tmp_path / "file" / "new")
    model = raymtl.load_model(run)
    with pytest.raises(UserError, match="output: expected the folder to make"):
        raymtl.export(model, "torch")


def test_a_run_without_a_model_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(UserError, match=r"has not come so far\. Continue it with --resume"):
        raymtl.export(tmp_path, "torch")
    with pytest.raises(UserError, match="expected a run folder, got no such folder"):
        raymtl.export(tmp_path / "none", "torch")


def test_a_package_that_is_missing_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"got no onnx\. Install them with `pip install 'raymtl\["):
        raymtl.export(run, "onnx")


def test_what_no_graph_can_say_is_refused(tmp_path: Path) -> None:
    transductive = experiment(
        encoder__name="mlp", encoder__norm="batch", encoder__transductive=True
    )
    with pytest.raises(UserError, match=r"encoder\.transductive: expected false"):
        raymtl.export(model_of(transductive), "torch", tmp_path / "out")
    rows = [f"a sentence with {n} and {n * n} words, more or less {n % 7}" for n in range(60)]
    table = pa.table(
        {"said": rows, "size": [float(n) for n in range(60)], "y": [n % 5 for n in range(60)]}
    )
    pq.write_table(table, tmp_path / "texts.parquet")
    data = {"name": "files", "path": str(tmp_path / "texts.parquet"), "tasks": {"y": {}}}
    texts = Experiment().override({"data": data, "encoder.name": "mlp", "learner.inner_steps": 0})
    with pytest.raises(UserError, match=r"got the text 'said'.*data\.exclude"):
        raymtl.export(model_of(texts.resolve()), "torch", tmp_path / "out")
    assert not (tmp_path / "out").exists()
