"""Rows per second from Parquet: raymtl's stream beside raw readers of pyarrow and Ray Data.

    python -m benchmarks.reading [--rows 500000] [--columns 40] [--turns 3] [--no-ray] [--json FILE]

All read the same file, block by block: the raw readers to columns of numpy, raymtl to inputs,
targets, masks and splits that episodes are drawn from. Bare pyarrow has one thread; raymtl reads a
block in a second thread while it encodes the one before. Rows per core-second count the time of
all threads. The ratio is raymtl's rows per second over the raw reader's, its median over turns.
`first batch` is the time from opened files to the first meta-batch, statistics included.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data import Files
from raymtl.data.episodes import build_episodes
from raymtl.data.tables.dataset import TableDataset
from raymtl.data.tables.encode import encode_blocks

GROUP = 20_000


def write(path: Path, rows: int, columns: int) -> None:
    """Float columns, a label of each of two kinds; row groups of GROUP rows."""
    rng = np.random.default_rng(0)
    writer = None
    for start in range(0, rows, GROUP):
        x = rng.normal(size=(min(GROUP, rows - start), columns))
        table = pa.table(
            {
                **{f"x{i}": own for i, own in enumerate(x.T)},
                "y": x.sum(1),
                "c": (x[:, 0] > 0).astype(int),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def with_pyarrow(path: Path) -> int:
    """Rows, each column as numpy."""
    file = pq.ParquetFile(path)
    rows = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, use_threads=False)
        rows += [len(column.to_numpy()) for column in table.columns][-1]
    return rows


def with_ray(path: Path) -> int:
    """The same through Ray Data."""
    import ray.data

    batches = ray.data.read_parquet(str(path)).iter_batches(batch_size=GROUP, batch_format="numpy")
    return sum(len(next(iter(batch.values()))) for batch in batches)


def with_raymtl(source: Files) -> int:
    """The same through the source."""
    dataset = TableDataset(source)
    blocks = encode_blocks(source, dataset, range(len(dataset.blocks)))
    return sum(len(block.given) for block in blocks)


def seconds(action: Callable[[], Any]) -> tuple[float, float]:
    """Of the clock, and of this process's cores."""
    wall, cores = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cores


def measure(rows: int, columns: int, turns: int, ray_too: bool) -> dict[str, Any]:
    """Rows per second of each reader and turn."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write(path, rows, columns)
        settings: dict[str, Any] = {"path": str(path), "tasks": {"y": {}, "c": {}}, "queries": 64}
        source = Files(**settings).resolve()
        readers: dict[str, Callable[[], int]] = {
            "pyarrow": lambda: with_pyarrow(path),
            "raymtl": lambda: with_raymtl(source),
        }
        if ray_too:
            import ray

            ray.init(address="local", logging_level=logging.ERROR, log_to_driver=False)
            ray.data.DataContext.get_current().enable_progress_bars = False
            readers["ray.data"] = lambda: with_ray(path)
        for read in readers.values():
            assert read() == rows  # and warms up
        speed: dict[str, list[float]] = {name: [] for name in readers}
        of_cores: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(turns):
            for name, read in readers.items():
                wall, cores = seconds(read)
                speed[name].append(rows / wall)
                of_cores[name].append(rows / cores)

        def first() -> None:
            fresh = Files(
                **settings, in_memory_mb=max(1.0, path.stat().st_size / 8e6), fit_rows=100_000
            ).resolve()
            build_episodes(fresh, fresh.load(), seed=0, split="train", step=0, indices=range(8))

        return {
            "rows": rows,
            "columns": columns,
            "rows_per_s": speed,
            "rows_per_core_s": of_cores,
            "first_batch_s": seconds(first),
        }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--columns", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    told = measure(given.rows, given.columns, given.turns, not given.no_ray)
    if given.json:
        given.json.write_text(json.dumps(told, indent=2))
    print("| reader | rows/s | rows/core-s | raymtl over it |\n|---|---|---|---|")
    for name, values in told["rows_per_s"].items():
        ratio = statistics.median(
            o / v for o, v in zip(told["rows_per_s"]["raymtl"], values, strict=True)
        )
        cores = statistics.median(told["rows_per_core_s"][name])
        print(f"| {name} | {statistics.median(values):,.0f} | {cores:,.0f} | {ratio:.2f} |")
    wall, cores = told["first_batch_s"]
    print(f"\nfirst batch of a stream: {wall:.2f} s, {cores:.2f} s of a core")


if __name__ == "__main__":
    main()
