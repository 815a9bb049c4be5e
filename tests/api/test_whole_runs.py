"""Trainings that Python starts."""

import threading
from pathlib import Path
from typing import Any

import pytest

import raymtl
from raymtl.config import parse

SMALL: dict[str, Any] = {
    "data": {"name": "digits"},
    "encoder": {"name": "mlp", "hidden": [8]},
    "train": {"steps": 6, "meta_batch": 2},
    "evaluate": {"val_episodes": 2, "test_episodes": 4},
}


@pytest.mark.slow
def test_a_thread_trains_on_the_ray_that_is_there(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from tests.distributed.local import local_ray

    runs: list[raymtl.Run] = []
    chosen = parse(SMALL | {"output": str(tmp_path)})
    with local_ray(num_cpus=2, include_dashboard=False):
        thread = threading.Thread(target=lambda: runs.append(raymtl.train(chosen)))
        thread.start()
        thread.join(600)
        assert ray.is_initialized(), "the connection stays"
    (run,) = runs
    again = raymtl.open_run(run.folder)
    assert again.summary == run.summary
    assert run.summary["models"][0]["score"]["after"]["mean"] >= 0
    model = raymtl.load_model(run.folder)
    assert {"report.html", "summary.json", "best"} <= {path.name for path in run.folder.iterdir()}
    assert sum(each.numel() for each in model.parameters()) > 0
