"""Trainings on Ray Train workers from prepared data: their weights are those from the files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.data import Files, Prepared, Source
from raymtl.data.prepared.prepare import prepare
from raymtl.storage import formats
from tests.data.own import PICTURE_TASKS, write_pictures
from tests.data.test_prepared import SMALL
from tests.distributed.local import local_ray
from tests.distributed.test_builders import assert_equal, trained
from tests.training.runs import run

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this machine, with room for four workers and two builders whatever its size."""
    with local_ray(num_cpus=6, include_dashboard=True):
        yield


def short(data: Source) -> Experiment:
    """Seven episodes a step of pictures, ragged on two workers and on four."""
    train = {"steps": 4, "eval_every": 2, "meta_batch": 7, "schedule": "constant"}
    return Experiment.model_validate(
        {"data": data.model_dump(), "encoder": {"name": "conv"}, "train": train}
    )


def weights(data: Source, folder: Path, workers: int, builders: int = 0) -> dict[str, Tensor]:
    chosen = short(data)
    return trained(chosen, ray.put(chosen.data.load()), folder, workers, builders)


@pytest.mark.slow
@pytest.mark.long
def test_prepared_data_give_the_weights_of_the_files(tmp_path: Path) -> None:
    """From shards on the disk, on 2 and 4 workers, with builders and lanes: to the bit for each
    number of workers, which differ in the order in which they add up float32.
    """
    settings: dict[str, Any] = {"augment": {"flip": True}, "shots": 2, "queries": 4}
    pictures = str(write_pictures(tmp_path / "pictures", 150))
    files = Files(path=pictures, tasks=PICTURE_TASKS, size=16, **settings).resolve()
    prepare(files, str(tmp_path / "shards"), shard_mb=SMALL)
    shards = Prepared(path=str(tmp_path / "shards"), in_memory_mb=0.001, lanes=2).resolve()
    run(short(files), files.load(), tmp_path / "alone")
    alone = formats.load_params(tmp_path / "alone" / "model.safetensors")
    for workers in (2, 4):
        expected = weights(files, tmp_path / f"files{workers}", workers)
        built = weights(shards, tmp_path / f"shards{workers}", workers, builders=2)
        assert_equal(built, expected)
        for name, value in expected.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5)
