"""Rows per second of `raymtl predict` beside the bare forward pass of the same model.

    python -m benchmarks.predict [--rows 1000000] [--columns 40] [--turns 3] [--ray] [--json FILE]

Bare is torch alone: the same model on the same numbers, which are tensors in memory already; no
file is read or written, no class is named. Predict reads Parquet, encodes by what the run found,
predicts, turns logits into names and probabilities, and writes Parquet. Both have --threads
threads, and take turns in processes of their own. Ratios are medians over turns. That of rows per
core second depends least on what else runs on the machine; it says nothing with `--ray`, whose work
is done by other processes. The peak of memory is that of the process, and how much of it came after
the model was loaded. `--ray` predicts by Ray Data; its rate is without the start of Ray. The model
is not trained, which takes no part in the time.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import raymtl
from raymtl.config import Experiment
from raymtl.prediction.new_rows import RowsToPredict
from raymtl.prediction.trained import load_trained, outputs_in_chunks
from raymtl.storage import formats

GROUP = 25_000
WIDTHS = {"linear": [], "default": [128, 128], "large": [512, 512]}
"""Models: the hidden layers of their encoder."""
AT_ONCE = (256, 1024, 4096, 16384)
"""Batches of the bare pass, of which the fastest on a tenth of the rows is measured on all."""


def write(path: Path, rows: int, columns: int) -> None:
    """Numbers and a label of each of two kinds, in row groups of GROUP rows."""
    rng = np.random.default_rng(0)
    names = [f"x{number}" for number in range(columns)]
    schema = pa.schema(
        [(name, pa.float64()) for name in names] + [("y", pa.float64()), ("c", pa.string())]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, GROUP):
            x = rng.normal(size=(min(GROUP, rows - start), columns))
            labels = np.where(x[:, 0] > 0, "yes", "no")
            arrays = [pa.array(own) for own in x.T]
            writer.write_table(
                pa.table([*arrays, pa.array(x.sum(1)), pa.array(labels)], schema=schema)
            )


def make_run(folder: Path, sample: Path, hidden: list[int]) -> Path:
    """A run folder with a model that is not trained."""
    experiment = Experiment.model_validate(
        {
            "data": {"name": "files", "path": str(sample), "tasks": {"y": {}, "c": {}}},
            "encoder": {"name": "mlp", "hidden": hidden},
            "learner": {"name": "maml", "inner_steps": 0},
        }
    ).resolve()
    best = folder / "best"
    best.mkdir(parents=True)
    experiment.save(folder / "config.yaml")
    experiment.save(best / "config.yaml")
    formats.save_params(best / "model.safetensors", experiment.build().init_params())
    return folder


def peak_mb() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """The time since it was made, of the wall and of this process's cores."""

    def __init__(self) -> None:
        self.wall, self.cores = time.perf_counter(), time.process_time()

    def rates(self, rows: int) -> dict[str, float]:
        """Rows per second of either."""
        wall, cores = time.perf_counter() - self.wall, time.process_time() - self.cores
        return {"rows_per_s": rows / wall, "rows_per_core_s": rows / cores}


def bare(run: Path, rows: Path) -> dict[str, float]:
    """Rows per second of the forward pass alone, in batches of the best size."""
    trained = load_trained(run)
    opened = RowsToPredict(trained, str(rows))
    inputs = torch.cat([opened.read(trained, number)[0].inputs for number in range(len(opened))])

    def rates(number: int, size: int) -> dict[str, float]:
        clock = Clock()
        outputs_in_chunks(trained, inputs[:number], size)
        return clock.rates(number)

    rates(len(inputs) // 10, AT_ONCE[0])  # warms up
    best = max(AT_ONCE, key=lambda size: rates(len(inputs) // 10, size)["rows_per_core_s"])
    return {**rates(len(inputs), best), "at_once": best}


def predict(run: Path, rows: Path, output: Path, *, with_ray: bool) -> dict[str, float]:
    """Rows per second of the whole prediction."""
    model = raymtl.load_model(run)
    before, start, address = peak_mb(), 0.0, None
    if with_ray:
        import ray

        begin = time.perf_counter()
        os.environ["RAY_TRAIN_ENABLE_WORKER_PREEMPTION"] = "0"
        ray.init(address="local", log_to_driver=False, num_cpus=torch.get_num_threads())
        address = str(ray.get_runtime_context().gcs_address)
        start = time.perf_counter() - begin
    clock = Clock()
    written = raymtl.predict(model, rows, output=output, address=address)
    return {
        **clock.rates(written.num_rows),
        "peak_mb": peak_mb(),
        "added_mb": peak_mb() - before,
        "start_s": start,
    }


def in_a_process(*words: str) -> dict[str, float]:
    """What one measurement of this file prints."""
    command = [sys.executable, "-m", "benchmarks.predict", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Turn after turn, bare and predict, for every model."""
    models: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        write(folder / "sample.parquet", 20_000, given.columns)
        write(folder / "rows.parquet", given.rows, given.columns)
        for name in given.model or WIDTHS:
            run = make_run(folder / name, folder / "sample.parquet", WIDTHS[name])
            turns = []
            for turn in range(given.turns):
                words = ["--run", str(run), "--file", str(folder / "rows.parquet")]
                words += ["--threads", str(given.threads)]
                rate = in_a_process("--part", "bare", *words)
                words += ["--output", str(folder / f"{name}-{turn}")]
                if given.ray:
                    words.append("--ray")
                turns.append({"bare": rate, "predict": in_a_process("--part", "predict", *words)})
            models[name] = {"hidden": WIDTHS[name], "turns": turns}
    return {
        "rows": given.rows,
        "columns": given.columns,
        "threads": given.threads,
        "models": models,
    }


def row_of(name: str, model: Mapping[str, Any]) -> str:
    """A line of the table."""
    turns = model["turns"]

    def median(of: Callable[[Mapping[str, Any]], float]) -> float:
        return statistics.median(of(turn) for turn in turns)

    def ratio(rate: str) -> float:
        return median(lambda turn: turn["predict"][rate] / turn["bare"][rate])

    return (
        f"| {name} {model['hidden']} | {median(lambda turn: turn['bare']['rows_per_s']):,.0f} "
        f"| {median(lambda turn: turn['predict']['rows_per_s']):,.0f} | {ratio('rows_per_s'):.2f} "
        f"| {ratio('rows_per_core_s'):.2f} "
        f"| {median(lambda turn: turn['predict']['peak_mb']):,.0f} "
        f"| {median(lambda turn: turn['predict']['added_mb']):,.0f} |"
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", action="append", choices=WIDTHS)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=["bare", "predict"], help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        torch.set_num_threads(given.threads)
        if given.part == "bare":
            measured = bare(given.run, given.file)
        else:
            measured = predict(given.run, given.file, given.output, with_ray=given.ray)
        print(json.dumps(measured))
        return
    found = measure(given)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))
    print(
        "| model | bare, rows/s | predict, rows/s | ratio | ratio of rows per core second "
        "| peak MB | of them added |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, model in found["models"].items():
        print(row_of(name, model))


if __name__ == "__main__":
    main()
