"""Single-task models merged into one: the arithmetic by hand, and the models as training leaves them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raymtl.api.model import load_model
from raymtl.config import Experiment
from raymtl.evaluation.baselines import alone, together
from raymtl.evaluation.evaluate import evaluate_folder
from raymtl.evaluation.merging.merge import METHODS, Family, Ingredients, gather, merge
from raymtl.evaluation.merging.task_arithmetic import TaskArithmetic
from raymtl.evaluation.merging.ties import TIES
from raymtl.storage import formats
from raymtl.storage.notes import Note
from tests.conftest import experiment
from tests.narrowing import checked, present
from tests.training.runs import run as train

TASKS = ("left", "sum")


def vectors(*rows: list[float]) -> list[dict[str, Tensor]]:
    """Task vectors of two tensors, [2, 2] and the rest."""
    found = []
    for row in rows:
        values = torch.tensor(row, dtype=torch.float64)
        found.append({"w": values[:4].view(2, 2), "b": values[4:]})
    return found


def flat(change: Mapping[str, Tensor]) -> list[float]:
    assert [*change] == ["w", "b"] and change["w"].shape == (2, 2)
    numbers: list[float] = torch.cat([change["w"].flatten(), change["b"]]).tolist()
    return numbers


def test_task_arithmetic_by_hand() -> None:
    change = TaskArithmetic(0.5).change(vectors([1, 2, 3, 4, 5], [-1, 2, 0, 0, 1]))
    assert flat(change) == [0, 2, 1.5, 2, 3]


def test_ties_by_hand() -> None:
    """Of five numbers three stay: of 5, -4, 3, 2, 1 the first three, and so on."""
    found = vectors([5, -4, 3, 2, 1], [-1, -2, -6, 0.5, 4], [3, 0.1, 2, 0.2, -7])
    # Trimmed: [5, -4, 3, 0, 0], [0, -2, -6, 0, 4], [3, 0, 2, 0, -7]; signs: +, -, -, none, -.
    assert flat(TIES(2.0, 0.6).change(found)) == [
        2 * (5 + 3) / 2,
        2 * (-4 - 2) / 2,
        2 * -6.0,
        0,
        2 * -7.0,
    ]


def test_ties_elects_no_sign_where_numbers_cancel() -> None:
    assert flat(TIES(1.0, 1.0).change(vectors([1, 2, 0, 0, 1], [-1, 2, 0, 3, 2]))) == [
        *(0, 2, 0),
        *(3, 1.5),
    ]


@pytest.mark.parametrize("method", [TaskArithmetic(0.7), TIES(1.3, 0.4)])
def test_the_order_of_tasks_does_not_matter(method: TaskArithmetic | TIES) -> None:
    found = vectors(*torch.randn(4, 9, dtype=torch.float64).tolist())
    one, other = method.change(found), method.change([found[i] for i in (2, 0, 3, 1)])
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", [TaskArithmetic(1.0), TIES(1.0, 1.0)])
def test_a_single_vector_stays_itself(method: TaskArithmetic | TIES) -> None:
    """So does the mean of equal ones by TIES."""
    (vector,) = vectors(torch.randn(9, dtype=torch.float64).tolist())
    assert flat(method.change([vector])) == flat(vector)
    torch.testing.assert_close(TIES(1.0, 1.0).change([vector] * 3), vector)


def configuration(**values: Any) -> Experiment:
    return experiment(
        data__tasks=list(TASKS), train__steps=4, train__eval_every=4, weighting__name="equal"
    ).override({key.replace("__", "."): value for key, value in values.items()})


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]) -> Family:
    """Two models of one task each, as a search trains them."""
    chosen, folders = configuration(), {}
    for task in TASKS:
        folders[task] = tmp_path_factory.mktemp("single") / f"single-{task}-0"
        train(alone(chosen, task), arrays, folders[task])
    return Family(together(alone(chosen, "left"), chosen.data), folders)


def values_of(folder: Path) -> dict[str, Tensor]:
    return formats.load_params(folder / "model.safetensors")


def test_the_scale_0_gives_the_initial_trunk(family: Family) -> None:
    """From which every single-task model was trained; the heads are those of the models."""
    merged = checked(gather(family), Ingredients).merged(TaskArithmetic(0.0))
    initial = family.experiment.build().init_params()
    assert merged.keys() == initial.keys()
    trunk = [name for name in merged if name.startswith("model.encoders.")]
    assert trunk and all(torch.equal(merged[name], initial[name]) for name in trunk)
    for task, folder in family.folders.items():
        start = alone(configuration(), task).build().init_params()
        assert all(torch.equal(start[name], initial[name]) for name in trunk)
        for name, value in values_of(folder).items():
            if name.startswith("model.heads."):
                assert torch.equal(merged[name], value)


@pytest.mark.parametrize("method", [TaskArithmetic(1.0), TIES(1.0, 1.0)])
def test_one_task_alone_gives_its_own_model(family: Family, method: TaskArithmetic | TIES) -> None:
    ingredients = checked(gather(family), Ingredients)
    for vector, folder in zip(ingredients.vectors, family.folders.values(), strict=True):
        merged = ingredients._replace(vectors=[vector]).merged(method)
        for name, value in values_of(folder).items():
            assert torch.equal(merged[name], value)


@pytest.mark.parametrize("name", METHODS)
def test_a_merged_model_is_a_model_folder(
    family: Family, name: str, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """It has the coefficients with the best validation score, and making it again gives the same."""
    folders = [tmp_path / each for each in "ab"]
    for folder in folders:
        assert merge([family], name, arrays, folder) is None
    one, other = ((f / "model.safetensors").read_bytes() for f in folders)
    assert one == other
    record = formats.read_json(folders[0] / "merged.json")
    assert len(record["tried"]) == len(METHODS[name])
    best = max(record["tried"], key=lambda each: float(each["val.score"]))
    assert record["val.score"] == best["val.score"]
    assert {**record["coefficients"], "family": 0, "val.score": best["val.score"]} == best
    evaluate_folder(folders[0], arrays, family.experiment.data)
    metrics = formats.read_json(folders[0] / "metrics.json")
    assert set(metrics["tasks"]) == set(TASKS)
    (note,) = [each for each in metrics["notes"] if each["place"] == "merging"]
    assert f"lambda {best['lambda']:g}" in note["text"] and note["key"] == "tune.baselines"
    pictures = torch.rand(3, *family.experiment.data.input_shape)
    assert set(load_model(folders[0]).predict(pictures)) == set(TASKS)


def test_the_best_family_is_merged(
    family: Family, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Not the first one, whose inner loop leads away."""
    worse = family._replace(experiment=family.experiment.override({"learner.inner_lr": 50.0}))
    assert merge([worse, family], "task_arithmetic", arrays, tmp_path / "m") is None
    record = formats.read_json(tmp_path / "m" / "merged.json")
    scores = dict.fromkeys((0, 1), -np.inf)
    for row in record["tried"]:
        if row["val.score"] is not None:
            scores[row["family"]] = max(scores[row["family"]], row["val.score"])
    assert scores[1] == record["val.score"] > scores[0]


@pytest.mark.parametrize(
    ("values", "key", "reason"),
    [
        ({"learner.name": "meta_sgd"}, "learner.name", "meta_sgd has parameters of its own"),
        ({"seed": 1}, "encoder.name", "of 'sum' starts from other values"),
    ],
)
def test_what_cannot_be_merged_is_noted(
    family: Family,
    values: dict[str, Any],
    key: str,
    reason: str,
    arrays: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = family.experiment.override(values)
    refused = family._replace(experiment=other)
    if "seed" in values:
        refused = family

        def own(model: Experiment, task: str) -> Experiment:
            return alone({"left": model, "sum": other}[task], task)

        monkeypatch.setattr("raymtl.evaluation.merging.merge.alone", own)
    note: Note = present(merge([refused], "ties", arrays, tmp_path / "m"))
    assert reason in note.text and note.key == key
    assert not (tmp_path / "m").exists()


def test_a_frozen_trunk_is_not_merged(family: Family) -> None:
    pictures = {"encoder.name": "timm", "encoder.model": "test_resnet", "encoder.size": 32}
    chosen = family.experiment.override(pictures)
    number = len(chosen.encoder.build(chosen.data.input_shape).stages)
    frozen = chosen.override({"encoder.frozen_stages": number})
    note = checked(gather(family._replace(experiment=frozen)), Note)
    assert "the tasks share nothing" in note.text and note.key == "encoder.frozen_stages"
