"""What the workers' environment holds, and whose setting wins."""

import os
import subprocess
import sys

import pytest

ray = pytest.importorskip("ray")

MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")

SHOW = """
import os
import ray
from raymtl.distributed import worker_environment
from raymtl.distributed.connection import start_ray

@ray.remote
def environment():
    return dict(os.environ)

start_ray(None)
seen = ray.get(environment.remote())
for name in {names}:
    print(name, seen[name], worker_environment()[name])
"""


def settings_of_a_worker(**own: str) -> dict[str, tuple[str, str]]:
    """By name, what a worker of a local Ray sees, and what one on another machine is given."""
    clean = {key: value for key, value in os.environ.items() if key not in MALLOC}
    clean.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", SHOW.format(names=MALLOC)],
        env={**clean, **own},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(MALLOC)]
    return {name: (local, remote) for name, local, remote in rows}


def test_workers_keep_large_blocks_of_memory() -> None:
    """Unless the user has set something else."""
    found = settings_of_a_worker(MALLOC_TOP_PAD_="4096")
    assert found == {
        "MALLOC_MMAP_THRESHOLD_": ("1073741824", "1073741824"),
        "MALLOC_TRIM_THRESHOLD_": ("2147483647", "2147483647"),
        "MALLOC_TOP_PAD_": ("4096", "4096"),
    }
