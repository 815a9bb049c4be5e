"""Blood cells, found and counted, on one trunk and alone: `python -m benchmarks.detection`.

The data are those of tune_configs/detection.yaml: 364 pictures in the layout of Pascal VOC with the
lists of ImageSets/Main, 205 for training, 87 for validation and 72 for the test. Every row trains
that configuration with some of its tasks, for as many steps of as many pictures; the checkpoint
that scores best on the validation pictures is the one that is scored, once, on all pictures of the
test. `--unboxed 0.7` withholds the boxes of that share of the pictures for training. One process,
one thread.

`always the mean` is what a count is off by that says the mean of the training pictures of every
one. About half of the red cells in the pictures have no box, and which ones do follows no rule that
could be learned: how many of them have one is predicted no better than that, from a count of the
boxes found neither.
"""

import json
import os
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from raymtl import config
from raymtl.config import Experiment
from raymtl.data import VOC, Arrays, Split
from raymtl.step.algorithm import Algorithm
from raymtl.storage import formats
from raymtl.tasks import label_counts, metric_parts, metric_sums, metric_values
from raymtl.tasks.boxes import average_precision
from raymtl.training import checkpoint
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import Params

CONFIG = Path(__file__).parent.parent / "tune_configs" / "detection.yaml"
ROWS: tuple[tuple[str, ...], ...] = (("boxes", "count"), ("boxes",), ("count",))
AT_ONCE = 24  # pictures that are scored together


def chosen(tasks: Sequence[str], *, seed: int, steps: int | None, unboxed: float) -> Experiment:
    """The configuration of a row."""
    values: dict[str, Any] = {"seed": seed, "data.tasks": list(tasks), "data.unboxed": unboxed}
    if len(tasks) == 1:
        values["weighting.weights"] = {}
    if steps is not None:
        values |= {"train.steps": steps, "train.eval_every": min(200, steps), "tune.asha": None}
    return config.load(CONFIG).override({"train.device": "cpu", **values})


def scores(
    experiment: Experiment, algorithm: Algorithm, params: Params, arrays: Arrays, split: Split
) -> dict[str, float]:
    """All scores on every picture of a split, once each; and the average precision of each class at
    an IoU of 0.5.
    """
    source = experiment.data
    assert isinstance(source, VOC)
    rows = arrays[f"rows/{split}"]
    sums: Any = 0.0
    counts: Any = 0
    for start in range(0, len(rows), AT_ONCE):
        batch = source.batch(arrays, rows[start : start + AT_ONCE])
        assert isinstance(batch.inputs, torch.Tensor)
        batch = batch._replace(inputs=batch.inputs.float() / 255)
        with torch.no_grad():
            found = algorithm.predict(params, batch.inputs)
            sums = sums + metric_sums(algorithm.tasks, found, batch)
            counts = counts + label_counts(algorithm.tasks, batch)
    values = metric_values(algorithm.tasks, sums, counts)
    parts = metric_parts(algorithm.tasks, sums)
    return {
        **{name: float(value) for name, value in values.items()},
        **precisions_of_classes(source, parts),
        **errors_of_counts(source, parts, arrays["target/count"][rows]),
    }


def precisions_of_classes(source: VOC, parts: Mapping[str, Any]) -> dict[str, float]:
    """The average precision of each class at an IoU of 0.5, where boxes are a task."""
    if "boxes.map_50" not in parts:
        return {}
    names = source.class_names("boxes")
    true, every, number = parts["boxes.map_50"].unflatten(-1, (len(names), 3, -1)).unbind(1)
    precisions = average_precision(true, every, number[:, 0])
    return {
        f"boxes.ap_50 {name}": float(value) for name, value in zip(names, precisions, strict=True)
    }


def errors_of_counts(source: VOC, parts: Mapping[str, Any], counts: np.ndarray) -> dict[str, float]:
    """Of each class, where counts [N, C] are a task: the model's, and those of the mean."""
    if "count.mae" not in parts:
        return {}
    assert source.found is not None
    above, below = parts["count.mae"].chunk(2)
    means = np.abs(counts - np.array(source.found.means)).mean(0)
    errors: dict[str, float] = {}
    for name, value, mean in zip(source.class_names("boxes"), above / below, means, strict=True):
        errors[f"count.mae {name}"] = float(value)
        errors[f"count.mae {name}, always the mean"] = float(mean)
    return errors


def train(
    experiment: Experiment, arrays: Arrays, folder: Path
) -> tuple[dict[str, float], dict[str, Any]]:
    """The test scores of the checkpoint that scores best in validation, and how it was trained."""
    algorithm = experiment.build()
    best: dict[str, Any] = {"score": -np.inf}

    def keep(told: dict[str, float]) -> None:
        kept = checkpoint.choose(folder).folder
        assert kept is not None
        params = formats.load_params(kept / "model.safetensors", algorithm.init_params())
        own = scores(experiment, algorithm, params, arrays, "val")
        score = float(
            np.mean([own[f"{task.name}.{next(iter(task.metrics))}"] for task in algorithm.tasks])
        )
        if score > best["score"]:
            best.update(score=score, params=params, step=told["step"], val=own)

    start = time.perf_counter()
    steps = iter(
        track(range(experiment.train.steps), ", ".join(experiment.data.task_names), transient=True)
    )

    def advance(row: Mapping[str, float | None]) -> None:
        next(steps, None)

    context = TrainContext(keep, advance)
    train_loop(experiment, arrays, local_batches(experiment, arrays), context, folder)
    seconds = time.perf_counter() - start
    about = {"seconds": seconds, "step": best["step"], "val": best["val"]}
    about["parameters"] = sum(value.numel() for value in best["params"].values())
    return scores(experiment, algorithm, best["params"], arrays, "test"), about


def main(
    seed: Annotated[
        list[int], typer.Option(help="Of the initialisation and the batches; several give a mean.")
    ] = [0],  # noqa: B006
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of each training; the configuration's by default.")
    ] = None,
    unboxed: Annotated[
        float, typer.Option(min=0, max=0.95, help="Share of pictures whose boxes are withheld.")
    ] = 0.0,
    data: Annotated[
        Path | None, typer.Option(help="The folder with VOCdevkit; else $RAYMTL_DATA.")
    ] = None,
    save: Annotated[Path | None, typer.Option("--json", help="Where to write the rows.")] = None,
) -> None:
    """Prints the average precisions and the errors of the counts on the test pictures."""
    if data:
        os.environ["RAYMTL_DATA"] = str(data.absolute())
    torch.set_num_threads(1)
    warnings.simplefilter("once")
    measured = []
    for number in seed:
        for tasks in ROWS:
            experiment = chosen(tasks, seed=number, steps=steps, unboxed=unboxed)
            with tempfile.TemporaryDirectory() as folder:
                found, about = train(experiment, experiment.data.load(), Path(folder))
            measured.append({"tasks": list(tasks), "seed": number, "test": found, **about})
            if save:
                save.write_text(json.dumps(measured, indent=2))
    Console().print(table(measured))


def table(measured: Sequence[dict[str, Any]]) -> Table:
    """A line a row, the mean over seeds, with the standard deviation where there are several."""
    names = list(dict.fromkeys(name for row in measured for name in row["test"]))
    shown = Table("test, 72 pictures", *(" + ".join(tasks) for tasks in ROWS), title="Blood cells")
    for name in names:
        cells = []
        for tasks in ROWS:
            values = [
                row["test"][name]
                for row in measured
                if row["tasks"] == list(tasks) and name in row["test"]
            ]
            if len(values) > 1:
                spread = f" ± {np.std(values, ddof=1):.3f}"
            else:
                spread = ""
            cells.append(f"{np.mean(values):.3f}{spread}" if values else "")
        shown.add_row(name, *cells)
    for key in ("seconds", "parameters", "step"):
        values = [
            np.mean([row[key] for row in measured if row["tasks"] == list(tasks)]) for tasks in ROWS
        ]
        shown.add_row(key, *(f"{value:,.0f}" for value in values))
    return shown


if __name__ == "__main__":
    typer.run(main)
