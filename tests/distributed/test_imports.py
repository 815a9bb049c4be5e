"""What a process of a run waits for before it begins: imports that it does not need take seconds."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        # What Ray Train's controller loads, before it starts the workers.
        (
            "raymtl.distributed.elastic, raymtl.distributed.step_shards",
            {"raymtl.config", "raymtl.step", "raymtl.data", "scipy.optimize"},
        ),
        (
            "raymtl.distributed.trainer, raymtl.pipeline.search",
            {"scipy.optimize", "plotly", "tensorboard"},
        ),
        ("raymtl.pipeline.pipeline", {"scipy.optimize", "plotly", "tensorboard"}),
    ],
)
def test_processes_import_only_what_they_need(imported: str, absent: set[str]) -> None:
    pytest.importorskip("ray")
    code = f"import sys, {imported}; print(*sorted({absent!r} & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert loaded.stdout.split() == []
