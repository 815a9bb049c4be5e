"""Preparing data much larger than memory, and a preparation that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymtl.config import load
from raymtl.data import Files
from raymtl.data.prepared.prepare import prepare
from tests.data.test_prepared import files_in
from tests.narrowing import checked

ROWS, COLUMNS = 8_000, 40
SHARD_MB = 2.7
CONFIG = """
data: {{name: files, path: {path}, in_memory_mb: 20, fit_rows: 100000, tasks: {{y: {{}}}}, group: g,
  episodes: groups, exclude: [kind]}}
encoder: {{name: mlp, hidden: [16]}}
learner: {{name: maml, inner_steps: 0}}
train: {{steps: 20, meta_batch: 4, eval_every: 20}}
"""


def write_large(path: Path, groups: int) -> None:
    """Row groups of 2.6 MB."""
    rng = np.random.default_rng(0)
    names = [*(f"x{i}" for i in range(COLUMNS)), "y"]
    schema = pa.schema([*((name, pa.float64()) for name in names), ("g", pa.string())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=["g"]) as writer:
        for _ in range(groups):
            x = rng.normal(size=(ROWS, COLUMNS))
            schools = pa.array([f"s{number}" for number in rng.integers(0, 500, ROWS)])
            writer.write_table(pa.table([*x.T, x.sum(1), schools], schema=schema))


def command(config: Path, output: Path) -> list[str]:
    given = ["data", "prepare", str(config), "--output", str(output), "--shard-mb", str(SHARD_MB)]
    return [sys.executable, "-m", "raymtl", *given]


@pytest.mark.slow
def test_a_killed_preparation_ends_with_equal_shards(tmp_path: Path) -> None:
    """By SIGKILL of all its processes, several times; what was complete is not made twice.

    The other preparation is that of a plain loop in this process.
    """
    write_large(tmp_path / "large.parquet", 20)
    config = tmp_path / "large.yaml"
    config.write_text(CONFIG.format(path=tmp_path / "large.parquet"))
    by_rows = checked(load(config, {"data.episodes": "rows"}).data, Files)
    prepare(by_rows.for_episodes("groups"), str(tmp_path / "straight"), shard_mb=SHARD_MB)
    broken = tmp_path / "broken"
    complete: dict[str, int] = {}
    for number in (3, 9):
        process = subprocess.Popen(command(config, broken), start_new_session=True)
        while len(list(broken.glob("shard-*.json"))) < number:
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in broken.glob("shard-*.json"):
            complete.setdefault(path.name, path.stat().st_mtime_ns)
    subprocess.run(command(config, broken), check=True, capture_output=True)
    assert files_in(broken) == files_in(tmp_path / "straight")
    for name, written_ns in complete.items():
        assert (broken / name).stat().st_mtime_ns == written_ns
