"""The moving average of the parameters, which is scored and kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raymtl.config import Experiment
from raymtl.storage import formats
from tests.conftest import experiment
from tests.training import runs
from tests.training.runs import Stopped

DECAY, STEPS = 0.6, 8


def averaged(**values: Any) -> Experiment:
    plan = {"train.steps": STEPS, "train.eval_every": 1, "train.lr": 0.1, "train.graph": "none"}
    short = experiment(encoder__hidden=[6], evaluate__val_episodes=2, learner__inner_steps=1)
    return short.override(plan | {"train.metric": "val.loss"} | values)


def trained(chosen: Experiment, arrays: Any, folder: Path, stop_at: int | None = None) -> None:
    """Copies the parameters of every step to `STEP.safetensors`."""

    def scored(step: int) -> None:
        saved = folder / "checkpoints" / f"step_{step:08d}" / "model.safetensors"
        formats.save_params(folder / f"{step}.safetensors", formats.load_params(saved))

    runs.run(chosen, arrays, folder, stop_at=stop_at, scored=scored)


def expected(chosen: Experiment, folder: Path) -> list[dict[str, torch.Tensor]]:
    """The average after every step by its definition, in float64."""
    average = {name: value.double() for name, value in chosen.build().init_params().items()}
    found = []
    for step in range(1, STEPS + 1):
        decay = min(DECAY, (1 + step) / (10 + step))
        params = load_file(folder / f"{step}.safetensors")
        average = {
            name: decay * value + (1 - decay) * params[name].double()
            for name, value in average.items()
        }
        found.append(average)
    return found


def assert_close(file: Path, wanted: dict[str, torch.Tensor]) -> None:
    params = load_file(file)
    assert params.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(params[name].double(), value, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def both(arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training with an average and without."""
    folder = tmp_path_factory.mktemp("average")
    trained(averaged(), arrays, folder / "plain")
    trained(averaged(**{"train.ema": DECAY}), arrays, folder / "average")
    return folder


def test_the_average_is_kept_by_its_definition(both: Path) -> None:
    assert_close(
        both / "average" / "model.safetensors",
        expected(averaged(), both / "average")[-1],
    )


def test_training_goes_on_as_without_it(both: Path) -> None:
    for step in range(1, STEPS + 1):
        first, second = (
            load_file(both / name / f"{step}.safetensors") for name in ("plain", "average")
        )
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_average_is_scored(both: Path, arrays: dict[str, np.ndarray]) -> None:
    losses = {
        name: [row["val.loss"] for row in formats.read_rows(both / name / "history.parquet")]
        for name in ("plain", "average")
    }
    assert losses["plain"] != losses["average"]


def test_the_best_average_is_kept_and_resumed(
    both: Path, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    chosen = averaged(**{"train.ema": DECAY, "train.keep": "best"})
    trained(chosen, arrays, tmp_path / "straight")
    with pytest.raises(Stopped):
        trained(chosen, arrays, tmp_path / "broken", stop_at=5)
    trained(chosen, arrays, tmp_path / "broken")
    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("straight", "broken")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    best = formats.read_rows(tmp_path / "straight" / "history.parquet")[-1]["best_step"]
    losses = [row["val.loss"] for row in formats.read_rows(both / "average" / "history.parquet")]
    assert best == 1 + losses.index(min(losses))
    assert_close(
        tmp_path / "straight" / "model.safetensors", expected(chosen, both / "average")[best - 1]
    )
