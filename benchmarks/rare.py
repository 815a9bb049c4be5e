"""Tables with rare positives: `python -m benchmarks.rare`.

    python -m benchmarks.rare --json rare.json             # what the file holds is not run again
    python -m benchmarks.rare --table digits --seeds 2

| table | a yes is | share | inputs | what is split |
|---|---|---|---|---|
| digits | an eight (scikit-learn's digits), of which every third is kept | 3 % | 64 | rows |
| water | the species 19400 of mulan_wq, abundant (5) | 8 % | 16 | rows |
| parkinsons | a total_UPDRS among the highest 5 % | 5 % | 18 | visits |
| school | an exam score among the highest 5 % | 5 % | 27 | pupils |

Every row of the result is one training of the same network, with as many steps of the same rate,
and a way to decide. The default has the plain loss, keeps the model of the last step and decides at
a probability of 1/2. The others keep the step with the best AUROC on validation, with or without
weights of the classes; `tuned` ones decide by the threshold with the best F1 on validation. 60 % of
the rows are for training, 20 % for validation and 20 % for the test, which each training and way to
decide reads once. A seed chooses the split, the initial weights and the batches. F1 and AUROC are
in per cent; behind ± is half the width of the 95 % interval over seeds, by Student's t, and `apart`
is the paired difference to the default's F1.
"""

import gzip
import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.io import arff
from sklearn.datasets import load_digits

from benchmarks.sharing import interval
from benchmarks.tabular import split_rows, visits
from raymtl.config import Experiment
from raymtl.config.experiment import parse
from raymtl.data.given import data_folder
from raymtl.evaluation.evaluate import evaluate, load_model
from raymtl.evaluation.thresholds import choose_thresholds, decided_by
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop

STEPS, EVERY = 600, 30
DEFAULT = "default"
BY_AUROC = {"train.keep": "best", "train.metric": "val.label.auroc"}


class Rare(NamedTuple):
    """Rows with a label that is seldom a yes; rows of one `group` are not parted by a split."""

    inputs: np.ndarray  # [N, D]
    yes: np.ndarray  # [N]
    group: np.ndarray  # [N]


def digits(folder: Path) -> Rare:
    images, labels = load_digits(return_X_y=True)
    eights = np.flatnonzero(labels == 8)
    kept = np.setdiff1d(np.arange(len(labels)), np.setdiff1d(eights, eights[::3]))
    return Rare(images[kept], labels[kept] == 8, np.arange(len(kept)))


def water(folder: Path) -> Rare:
    with gzip.open(folder / "mulan_wq.arff.gz", "rt") as file:
        values, _ = arff.loadarff(io.StringIO(file.read()))
    table = np.array(values.tolist(), dtype=float)
    abundant = values["19400"].astype(float) >= 5
    return Rare(table[:, :16], abundant, np.arange(len(table)))


def parkinsons(folder: Path) -> Rare:
    with gzip.open(folder / "parkinsons_updrs.data.gz", "rt") as file:
        header = file.readline().split()
        table = np.loadtxt(file)
    score = table[:, header.index("total_UPDRS")]
    left_out = ("subject#", "total_UPDRS", "motor_UPDRS")
    inputs = [index for index, name in enumerate(header) if name not in left_out]
    patient, day = table[:, header.index("subject#")], table[:, header.index("test_time")]
    group = np.zeros(len(table), dtype=int)
    for number in np.unique(patient):
        own = patient == number
        group[own] = 1000 * int(number) + visits(day[own])
    return Rare(table[:, inputs], score > np.quantile(score, 0.95), group)


def school(folder: Path) -> Rare:
    file = scipy.io.loadmat(folder / "school.mat")
    inputs = np.concatenate([np.asarray(own, dtype=float) for own in file["X"][0]])
    score = np.concatenate([np.asarray(own, dtype=float)[:, 0] for own in file["Y"][0]])
    return Rare(inputs, score > np.quantile(score, 0.95), np.arange(len(score)))


TABLES: dict[str, Callable[[Path], Rare]] = {
    "digits": digits,
    "water": water,
    "parkinsons": parkinsons,
    "school": school,
}
TRAININGS: dict[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "plain, AUROC": BY_AUROC,
    "class_weights, AUROC": {**BY_AUROC, "data.tasks.label.class_weights": "balanced"},
    "pos_weight, AUROC": {**BY_AUROC, "data.tasks.label.pos_weight": "balanced"},
}
"""What each training changes of the default."""


def experiment(path: Path, rare: Rare, seed: int) -> Experiment:
    """Writes the table with its splits; the default training on it."""
    columns: dict[str, Any] = {f"x{i}": own for i, own in enumerate(rare.inputs.T)}
    split = np.empty(len(rare.yes), dtype=object)
    parts = split_rows(rare.group, np.random.default_rng(seed))
    for name, rows in zip(("train", "val", "test"), parts, strict=True):
        split[rows] = name
    columns |= {"label": np.where(rare.yes, "yes", "no"), "split": split.tolist()}
    pq.write_table(pa.table(columns), path)
    chosen = {
        "seed": seed,
        "data": {
            "name": "files",
            "path": str(path),
            "inputs": {"x*": "number"},
            "split": {"column": "split"},
            "tasks": {"label": {"kind": "binary", "classes": ["no", "yes"]}},
            "shots": 1,
            "queries": 128,
        },
        "encoder": {"name": "mlp", "hidden": [64, 64]},
        "learner": {"name": "maml", "inner_steps": 0},
        "train": {"steps": STEPS, "meta_batch": 1, "eval_every": EVERY, "device": "cpu"},
    }
    return parse(chosen).resolve()


def scores(rare: Rare, training: str, seed: int, steps: int = STEPS) -> dict[str, Any]:
    """AUROC on the test, and F1 at 1/2 and at the threshold that is tuned on validation."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        default = experiment(folder / "rare.parquet", rare, seed)
        chosen = default.override({**TRAININGS[training], "train.steps": steps}).resolve()
        arrays = chosen.data.load()
        context = TrainContext(lambda _: None, lambda _: None)
        train_loop(chosen, arrays, local_batches(chosen, arrays), context, folder / "model")
        _, algorithm, params = load_model(folder / "model")
        tasks = tuple(task._replace(threshold_metric="f1") for task in algorithm.tasks)
        algorithm = algorithm._replace(tasks=tasks)
        tuned = decided_by(algorithm, choose_thresholds(chosen, algorithm, params, arrays))
        found = {
            way: evaluate(chosen, own, params, arrays).metrics["tasks"]["label"]
            for way, own in (("half", algorithm), ("tuned", tuned))
        }
    return {
        "auroc": 100 * found["half"]["auroc"]["after"]["mean"],
        **{way: 100 * own["f1"]["after"]["mean"] for way, own in found.items()},
    }


def main(
    table: Annotated[list[str], typer.Option(help="Of the tables; all by default.")] = [],  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help="How many splits.")] = 8,
    data: Annotated[Path | None, typer.Option(help="Holds tabular/; else $RAYMTL_DATA.")] = None,
    save: Annotated[Path | None, typer.Option("--json", help="Where to write the rows.")] = None,
) -> None:
    """Prints F1 and AUROC on the test, and the paired differences to the default."""
    torch.set_num_threads(1)
    given = str(data) if data else None
    folder = data_folder(given, "tabular", "tabular") / "tabular"
    rows: list[dict[str, Any]] = []
    if save and save.exists():
        rows = json.loads(save.read_text())
    done = {(row["table"], row["training"], row["seed"]) for row in rows}
    jobs = [
        (name, training, seed)
        for seed in range(seeds)
        for name in table or TABLES
        for training in TRAININGS
        if (name, training, seed) not in done
    ]
    for name, training, seed in track(jobs, "training"):
        rare = TABLES[name](folder)
        found = scores(rare, training, seed)
        rows.append({"table": name, "training": training, "seed": seed, **found})
        if save:
            save.write_text(json.dumps(rows, indent=2))
    Console(width=110).print(table_of(rows))


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each table, training and way to decide, with the mean over seeds."""
    shown = Table("table", "training", "threshold", "AUROC", "F1", "apart", title="Rare positives")
    default = {
        (row["table"], row["seed"]): row["half"] for row in rows if row["training"] == DEFAULT
    }
    for name in dict.fromkeys(row["table"] for row in rows):
        for training in TRAININGS:
            own = [row for row in rows if (row["table"], row["training"]) == (name, training)]
            if not own:
                continue
            areas = _with_interval([row["auroc"] for row in own])
            for way, threshold in (("half", "1/2"), ("tuned", "tuned")):
                apart = [
                    row[way] - default[name, row["seed"]]
                    for row in own
                    if (name, row["seed"]) in default
                ]
                f1 = _with_interval([row[way] for row in own])
                shown.add_row(name, training, threshold, areas, f1, _with_interval(apart))
    return shown


def _with_interval(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, half = interval(values)
    if half is None:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {half:.1f}"


if __name__ == "__main__":
    typer.run(main)
