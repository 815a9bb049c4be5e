"""The benchmark of blood cells: its rows are one configuration, and its scores are those of all pictures once."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import detection
from raymtl.data import VOC
from tests.data.blood import write_voc
from tests.narrowing import checked


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_voc(tmp_path)
    monkeypatch.setenv("RAYMTL_DATA", str(tmp_path))
    return tmp_path


def test_every_row_has_the_same_budget(folder: Path) -> None:
    rows = [detection.chosen(tasks, seed=1, steps=None, unboxed=0.0) for tasks in detection.ROWS]
    first = checked(rows[0].data, VOC)
    queries, size = first.queries, first.size
    assert [row.data.task_names for row in rows] == [("boxes", "count"), ("boxes",), ("count",)]
    same = []
    for row in rows:
        data = checked(row.data, VOC)
        same.append((row.train, row.encoder, row.sharing, row.learner, row.seed))
        assert (data.queries, data.size) == (queries, size)
    assert same[0] == same[1] == same[2]


def test_the_best_in_validation_is_tested(folder: Path, tmp_path: Path) -> None:
    """On all test pictures once."""
    chosen = detection.chosen(("boxes", "count"), seed=0, steps=2, unboxed=0.5)
    small = {
        "data.size": [24, 32],
        "encoder.channels": [4, 4],
        "train.eval_every": 1,
        "evaluate.val_episodes": 2,
    }
    chosen = chosen.override(small)
    arrays = chosen.data.load()
    found, about = detection.train(chosen, arrays, tmp_path / "out")
    assert about["step"] in (1, 2) and set(found) >= {
        "boxes.map",
        "boxes.map_50",
        "count.mae",
        "count.mae disc",
    }
    rows = arrays["rows/test"]
    algorithm = chosen.build()
    params = algorithm.init_params()
    own = detection.scores(chosen, algorithm, params, arrays, "test")
    with torch.no_grad():
        said = algorithm.predict(params, torch.from_numpy(arrays["pictures"][rows]).float() / 255)[
            "count"
        ]
    errors = (
        (algorithm.tasks[1].decode(said) - torch.from_numpy(arrays["target/count"][rows]))
        .abs()
        .mean(0)
    )
    np.testing.assert_allclose([own["count.mae disc"], own["count.mae square"]], errors, rtol=1e-5)
    assert own["count.mae"] == pytest.approx(float(errors.mean()), rel=1e-5)
    assert "RAYMTL_DATA" in os.environ
    shown = detection.table(
        [{"tasks": list(tasks), "test": found, **about} for tasks in detection.ROWS]
    )
    assert shown.row_count == len(found) + 3
