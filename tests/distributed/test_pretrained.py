"""Pre-trained encoders on real Ray Train workers."""

from pathlib import Path

import pytest
import torch

from raymtl.config import parse
from raymtl.distributed.trainer import TrainerSpec, train
from raymtl.encoders.pretrained import weights
from raymtl.evaluation.evaluate import load_model
from raymtl.storage import formats
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from tests.conftest import axes
from tests.distributed.local import local_ray

ray = pytest.importorskip("ray")
models = pytest.importorskip("torchvision.models")


@pytest.mark.slow
def test_workers_train_alike_and_need_no_file_of_weights(tmp_path: Path) -> None:
    """The file is gone before they start; neither they nor who loads the model miss it."""
    path = tmp_path / "weights.safetensors"
    formats.save_params(path, models.mobilenet_v3_small(weights=None).state_dict())
    tree = axes("hard", "static", "maml").model_dump(mode="json")
    tree["encoder"] = {
        "name": "torchvision",
        "model": "mobilenet_v3_small",
        "weights": str(path),
        "size": 32,
        "frozen_stages": 11,
        "lr_scale": 0.5,
    }
    tree["train"] |= {"steps": 2, "eval_every": 2, "meta_batch": 3, "lr": 1e-4, "graph": "none"}
    experiment = parse(tree).resolve()
    path.unlink()
    arrays = experiment.data.load()
    for name in ("workers", "alone"):
        (tmp_path / name).mkdir()
    spec = TrainerSpec("workers", tmp_path / "ray", workers=2, cpus=1, gpus=0)
    with local_ray(num_cpus=3, include_dashboard=True):
        train(experiment, ray.put(arrays), tmp_path / "workers", spec)
    quiet = TrainContext(lambda metrics: None, lambda step: None)
    train_loop(experiment, arrays, local_batches(experiment, arrays), quiet, tmp_path / "alone")
    weights._held.clear()
    (_, of_workers, theirs), (_, alone, ours) = (
        load_model(tmp_path / name) for name in ("workers", "alone")
    )
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-6)
    constants = of_workers.constants()
    assert len(constants) > 50
    assert all(torch.equal(constants[name], value) for name, value in alone.constants().items())
