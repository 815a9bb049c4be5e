"""Data far larger than the object store and the memory limit: prepared, killed on the way, trained."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymtl.data.prepared.load import read_manifest
from tests.distributed.local import local_ray

ray = pytest.importorskip("ray")

STORE_MB = 80
"""Of Ray's objects: the least that Ray allows."""
LIMIT_MB = 400
"""`data.in_memory_mb`."""
DATA_MB = 1600
"""20 times the object store, 4 times the limit; as many megabytes of encoded rows."""
COLUMNS, ROWS = 200, 10_000
"""Of a row group, which has 8 MB."""
CONFIG = """
data: {{name: files, path: {path}, in_memory_mb: {limit}, fit_rows: 50000, group: g,
  episodes: groups, tasks: {{kind: {{kind: classification}}}}}}
encoder: {{name: mlp, hidden: [16]}}
"""


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def write_large(path: Path, groups: int) -> None:
    rng = np.random.default_rng(0)
    names = [f"x{i}" for i in range(COLUMNS)]
    kinds = pa.array([f"k{number}" for number in range(40)])
    schools = pa.array([f"s{number}" for number in range(500)])
    fields = [*((name, pa.float32()) for name in names), ("kind", pa.string()), ("g", pa.string())]
    schema = pa.schema(fields)
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=["g", "kind"]) as file:
        for _ in range(groups):
            x = rng.standard_normal((COLUMNS, ROWS), dtype=np.float32)
            labels = [
                values.take(pa.array(rng.integers(0, len(values), ROWS)))
                for values in (kinds, schools)
            ]
            file.write_table(pa.table([*x, *labels], schema=schema))


class Meter(threading.Thread):
    """Measures how much memory the processes of a command and of this test's Ray take together."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mb = 0.0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.2):
            self.peak_mb = max(self.peak_mb, sum(map(pss_mb, descendants(os.getpid()))))


def descendants(pid: int) -> list[int]:
    """All processes that a process has started, and those that these have."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            children.setdefault(parent(int(folder.name)), []).append(int(folder.name))
    found = list(children.get(pid, []))
    for process in found:  # which grows
        found += children.get(process, [])
    return found


def pss_mb(pid: int) -> float:
    """The memory of a process, and its share of what it has in common with others."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def prepare_command(config: Path, output: Path) -> list[str]:
    options = ["--output", str(output), "--shard-mb", "16"]
    address = ray.get_runtime_context().gcs_address
    command = ["data", "prepare", str(config), *options, "--address", address]
    return [sys.executable, "-m", "raymtl", *command]


def peak_mb(command: list[str]) -> float:
    """The most memory that is taken while a command runs to its end."""
    meter = Meter()
    meter.start()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    meter.ended.set()
    meter.join()
    assert done.returncode == 0, done.stderr[-2000:]
    return meter.peak_mb


def kill_in_the_middle(
    command: list[str], output: Path, shards: int
) -> dict[Path, tuple[int, int]]:
    """Kills a preparation by SIGKILL; what it has completed by then, with inodes and times."""
    process = subprocess.Popen(command)
    while len(list(output.glob("shard-*.json"))) < shards:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    complete = sorted(output.glob("shard-*.json"))
    return {
        path: written(path) for path in [*complete, *(p.with_suffix(".parquet") for p in complete)]
    }


def written(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


TRAIN = """
import re, sys
from pathlib import Path
from raymtl.config import load
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop

experiment = load(Path(sys.argv[1]))
arrays = experiment.data.load()
context = TrainContext(lambda metrics: None, lambda row: None)
folder = Path(sys.argv[2])
folder.mkdir()
train_loop(experiment, arrays, local_batches(experiment, arrays), context, folder)
status = Path("/proc/self/status").read_text()
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024)
"""


def train_peak_mb(prepared: Path, episodes: str, folder: Path) -> float:
    """The most memory that a process takes which trains on the shards."""
    name = f"{prepared.name}-{episodes}"
    config = folder / f"{name}.yaml"
    config.write_text(
        f"data: {{name: prepared, path: {prepared}, episodes: {episodes}, shots: 2, queries: 4}}\n"
        "encoder: {name: mlp, hidden: [16]}\nlearner: {name: maml, inner_steps: 0}\n"
        "train: {steps: 30, meta_batch: 4, eval_every: 30}\n"
        "evaluate: {val_episodes: 4, test_episodes: 4}\n"
    )
    command = [sys.executable, "-c", TRAIN, str(config), str(folder / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.long
def test_data_larger_than_everything_are_prepared_and_trained(tmp_path: Path) -> None:
    """Killed in the middle: what was complete is not made twice, and nothing is missing."""
    configs = {}
    for name, row_groups in (("small", 8), ("large", DATA_MB // 8)):
        write_large(tmp_path / f"{name}.parquet", row_groups)
        configs[name] = tmp_path / f"{name}.yaml"
        content = CONFIG.format(path=tmp_path / f"{name}.parquet", limit=LIMIT_MB)
        configs[name].write_text(content)
    output = tmp_path / "out"
    with local_ray(num_cpus=2, include_dashboard=False, object_store_memory=STORE_MB * 10**6):
        least_mb = peak_mb(prepare_command(configs["small"], tmp_path / "small"))
        command = prepare_command(configs["large"], output)
        complete = kill_in_the_middle(command, output, DATA_MB // 16 // 3)
        most_mb = peak_mb(command)
    assert most_mb - least_mb < LIMIT_MB
    for path, before in complete.items():
        assert written(path) == before
    manifest = read_manifest(str(output))
    assert manifest.rows == ROWS * DATA_MB // 8
    assert manifest.num_bytes > DATA_MB * 1e6
    os.remove(tmp_path / "large.parquet")
    for episodes in ("rows", "groups", "classes"):
        small_mb = train_peak_mb(tmp_path / "small", episodes, tmp_path)
        assert train_peak_mb(output, episodes, tmp_path) - small_mb < LIMIT_MB
