"""Thresholds that are chosen on validation: what they see, where they are kept, what uses them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

import raymtl
from raymtl.config.experiment import Experiment, parse
from raymtl.data.base import Arrays
from raymtl.evaluation.evaluate import evaluate, evaluate_folder, load_model
from raymtl.evaluation.predictions import write_held_out
from raymtl.evaluation.thresholds import FILE, choose_thresholds
from raymtl.storage import formats
from raymtl.types import UserError
from tests.data.own import write_csv
from tests.training.runs import run


def table(path: Path, number: int = 900) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(number, 3))
    noise = rng.normal(size=number)
    tags = [
        ";".join(tag for tag, on in (("u", a > 1.2), ("v", b > 0.5), ("w", True)) if on)
        for a, b in zip(x[:, 1] + noise, x[:, 2] - noise, strict=True)
    ]
    split = np.repeat(["train", "val", "test"], [number // 3] * 3)
    return write_csv(
        path,
        {
            "a": x[:, 0].tolist(), "b": x[:, 1].tolist(), "c": x[:, 2].tolist(),
            "rare": np.where(x[:, 0] + noise > 1.7, "yes", "no").tolist(), "tags": tags,
            "split": split.tolist(), "size": noise.tolist(),
        },
    )  # fmt: skip


def chosen(path: Path, tasks: Mapping[str, Any], **values: Any) -> Experiment:
    return parse(
        {
            "data": {
                "name": "files", "path": str(path), "inputs": ["a", "b", "c"], "tasks": tasks,
                "split": {"column": "split"}, "shots": 1, "queries": 64,
            },
            "encoder": {"name": "mlp", "hidden": [16]},
            "learner": {"name": "maml", "inner_steps": 0},
            "train": {"steps": 30, "meta_batch": 2, "lr": 0.02, "eval_every": 30, "device": "cpu"},
            **values,
        }
    ).resolve()  # fmt: skip


TASKS = {"rare": {"metric": "f1"}, "tags": {"kind": "multilabel", "threshold": "f1"}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Arrays]:
    folder = tmp_path_factory.mktemp("rare")
    experiment = chosen(table(folder / "t.csv"), TASKS)
    arrays = experiment.data.load()
    run(experiment, arrays, folder / "model")
    evaluate_folder(folder / "model", arrays, experiment.data)
    return folder / "model", arrays


def logits_of(folder: Path, arrays: Arrays, split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The logits of a split, and its rows, without anything that this test is about."""
    _, algorithm, params = load_model(folder)
    rows = arrays[f"rows/{split}"]
    inputs = torch.as_tensor(arrays["inputs"][rows]).float()
    with torch.no_grad():
        outputs = algorithm.predict(params, inputs)
    return {name: each.double().numpy() for name, each in outputs.items()}, rows


def test_thresholds_are_the_best_of_validation(trained: tuple[Path, Arrays]) -> None:
    folder, arrays = trained
    kept = formats.read_json(folder / FILE)
    logits, rows = logits_of(folder, arrays, "val")
    target = arrays["target/rare"][rows]
    values = np.unique(logits["rare"])
    cuts = [values[0] - 1, *((values[1:] + values[:-1]) / 2), values[-1] + 1]
    best = max(f1_score(target, logits["rare"][:, 0] > cut, zero_division=0) for cut in cuts)
    mine = f1_score(target, logits["rare"][:, 0] > kept["rare"][0])
    assert mine == pytest.approx(best)
    assert mine > f1_score(target, logits["rare"][:, 0] > 0, zero_division=0)
    assert len(kept["tags"]) == 3 and kept["tags"][2] is None  # 'w' is in every row


def test_everything_decides_by_them(trained: tuple[Path, Arrays], tmp_path: Path) -> None:
    """The scores, the predictions of a split, the loaded model and its predictions of a file."""
    folder, arrays = trained
    experiment, algorithm, params = load_model(folder)
    kept = formats.read_json(folder / FILE)
    logits, rows = logits_of(folder, arrays, "test")
    decided = logits["rare"][:, 0] > kept["rare"][0]
    score = formats.read_json(folder / "metrics.json")["tasks"]["rare"]["f1"]["after"]["mean"]
    assert score == pytest.approx(f1_score(arrays["target/rare"][rows], decided))
    again = evaluate(experiment, algorithm, params, arrays).metrics
    assert again["tasks"]["rare"]["f1"]["after"]["mean"] == score
    path = tmp_path / "p.parquet"
    write_held_out(path, experiment.data, algorithm, params, arrays, "test")
    written = formats.read_table(path)
    answers = np.array(written["rare.after"].to_pylist())
    assert np.array_equal(answers == "yes", decided) and decided.any()
    likely = np.array(written["rare.probability.yes"].to_pylist())
    of_answer = np.array(written["rare.probability"].to_pylist())
    np.testing.assert_allclose(of_answer, np.where(decided, likely, 1 - likely))
    model = raymtl.load_model(folder)
    inputs = torch.as_tensor(arrays["inputs"][rows]).float()
    assert np.array_equal(model.predict(inputs)["rare"].numpy() == 1, decided)
    tags = model.predict(inputs)["tags"].numpy()
    cuts = np.array([cut or 0.0 for cut in kept["tags"]])
    assert np.array_equal(tags == 1, logits["tags"] > cuts)


def test_the_test_split_has_no_say(trained: tuple[Path, Arrays]) -> None:
    folder, arrays = trained
    experiment, algorithm, params = load_model(folder)
    changed = dict(arrays)
    target = np.array(changed["target/rare"])
    target[arrays["rows/test"]] = 1 - target[arrays["rows/test"]]
    changed["target/rare"] = target
    bare = algorithm._replace(tasks=experiment.data.make_tasks())
    found = choose_thresholds(experiment, bare, params, changed)
    assert found["rare"] == tuple(formats.read_json(folder / FILE)["rare"])
    target[arrays["rows/val"]] = 1 - target[arrays["rows/val"]]
    assert choose_thresholds(experiment, bare, params, changed)["rare"] != found["rare"]


def test_scoring_again_gives_the_same_thresholds(trained: tuple[Path, Arrays]) -> None:
    """A folder that has them already does not choose on top of them."""
    folder, arrays = trained
    before = formats.read_json(folder / FILE), formats.read_json(folder / "metrics.json")
    evaluate_folder(folder, arrays, load_model(folder)[0].data)
    assert (formats.read_json(folder / FILE), formats.read_json(folder / "metrics.json")) == before


def test_notes_name_the_key(trained: tuple[Path, Arrays]) -> None:
    folder, _ = trained
    notes = formats.read_json(folder / "metrics.json")["notes"]
    own = {note["text"]: note["key"] for note in notes if "above a probability" in note["text"]}
    rare = next(text for text in own if text.startswith("'yes' above"))
    assert own[rare] == "data.tasks.rare.threshold" and "best f1 on validation" in rare
    absent = next(text for text in own if text.startswith("'w' above a probability of 0.5"))
    assert own[absent] == "data.tasks.tags.threshold"


def test_a_run_without_such_a_score_has_no_thresholds(tmp_path: Path) -> None:
    experiment = chosen(table(tmp_path / "t.csv", 300), {"rare": {}})
    arrays = experiment.data.load()
    run(experiment, arrays, tmp_path / "model")
    evaluate_folder(tmp_path / "model", arrays, experiment.data)
    assert not (tmp_path / "model" / FILE).exists()


def test_a_model_that_adapts_is_judged_after_it(tmp_path: Path) -> None:
    learner = {"learner": {"name": "maml", "inner_steps": 1}, "evaluate": {"val_episodes": 4}}
    experiment = chosen(table(tmp_path / "t.csv", 300), {"rare": {"metric": "f1"}}, **learner)
    arrays = experiment.data.load()
    algorithm = experiment.build()
    params = algorithm.init_params()
    found = choose_thresholds(experiment, algorithm, params, arrays)
    fixed = {name: value.detach() for name, value in params.items()}
    unadapted = chosen(table(tmp_path / "t.csv", 300), {"rare": {"metric": "f1"}})
    assert found != choose_thresholds(unadapted, unadapted.build(), fixed, arrays)


def test_a_threshold_changes_no_finding(tmp_path: Path) -> None:
    """So it may be changed without reading the files again."""
    experiment = chosen(table(tmp_path / "t.csv", 300), {"rare": {}})
    (tmp_path / "t.csv").unlink()
    other = experiment.override({"data.tasks.rare.threshold": 0.2})
    assert other.data.make_tasks()[0].thresholds == pytest.approx((np.log(0.2 / 0.8),))


def test_a_threshold_of_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.tasks\.size\.threshold: .*of kind regression"):
        chosen(table(tmp_path / "t.csv", 300), {"size": {"threshold": 0.3}})
