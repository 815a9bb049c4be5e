"""Few-shot classification of handwritten characters: `python -m benchmarks.omniglot`.

Prototypes from tune_configs/omniglot.yaml and MAML from tune_configs/omniglot-maml.yaml, trained by
what `raymtl train` calls and scored on test episodes of characters that training never saw. As it
stands it fits two CPU cores; `--full` is the protocol of the papers, for a GPU.
"""

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from raymtl import config, run_folder
from raymtl.config import Experiment
from raymtl.storage import formats

Length = Literal["quick", "cpu", "full"]
FOLDER = Path(__file__).parent.parent / "tune_configs"
CONFIGS = {"protonet": "omniglot.yaml", "maml": "omniglot-maml.yaml"}
QUICK = {
    "train.steps": 4,
    "train.eval_every": 4,
    "evaluate.val_episodes": 2,
    "evaluate.test_episodes": 4,
}
FULL: dict[str, dict[str, Any]] = {
    # Snell et al., 2017, arXiv:1703.05175: 60 ways in training.
    "protonet": {"data.train_ways": 60, "train.steps": 20_000, "train.meta_batch": 4},
    # Antoniou et al., 2019, arXiv:1810.09502: 64 filters, 5 inner steps, 16 tasks a step.
    "maml": {
        "encoder.width": 64,
        "learner.inner_steps": 5,
        "train.steps": 60_000,
        "train.meta_batch": 16,
    },
}
"""What the papers' protocols change, for a GPU."""


def chosen(
    learner: str,
    ways: int,
    shots: int,
    device: str,
    workers: int,
    length: Length,
) -> Experiment:
    """The configuration of a row."""
    values = {
        "name": f"omniglot-{learner}-{ways}-{shots}",
        "data.ways": ways,
        "data.shots": shots,
        "train.device": device,
        "train.workers": workers,
    }
    changes = {"quick": QUICK, "cpu": {}, "full": FULL[learner] | {"evaluate.test_episodes": 1_000}}
    return config.load(FOLDER / CONFIGS[learner]).override(values | changes[length])


def measure(experiment: Experiment, output: Path) -> dict[str, Any]:
    """Trains and scores a configuration: its part of the JSON file."""
    # Here and not above: what Ray reads is set where it is imported first.
    from raymtl.pipeline.pipeline import train_run

    experiment = experiment.override({"output": str(output)})
    start = time.perf_counter()
    run = run_folder.create(experiment)
    train_run(experiment, run, experiment.data.load(), None)
    seconds = time.perf_counter() - start
    metrics = formats.read_json(run / "best" / "metrics.json")
    return {
        "accuracy": metrics["tasks"]["character"]["accuracy"]["after"],
        "episodes": metrics["episodes"],
        "transductive": metrics["transductive"],
        "train_seconds": metrics["train_seconds"],
        "seconds": seconds,
        "tasks_per_second": experiment.train.steps
        * experiment.train.meta_batch
        / metrics["train_seconds"],
        "config": experiment.model_dump(mode="json"),
    }


def length_of(quick: bool, full: bool) -> Length:
    """How long to train; a smoke run where both are asked for."""
    if quick:
        return "quick"
    if full:
        return "full"
    return "cpu"


def table_of(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """A line for each learner; `title` stands over the accuracies."""
    table = Table(
        "learner",
        title,
        "episodes",
        "transductive",
        "train s",
        "all s",
        "tasks/s",
    )
    for row in rows:
        accuracy = row["accuracy"]
        table.add_row(
            row["learner"],
            f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['ci95']:.2f}",
            str(row["episodes"]),
            "yes" if row["transductive"] else "no",
            *(f"{row[key]:.0f}" for key in ("train_seconds", "seconds", "tasks_per_second")),
        )
    return table


def main(  # noqa: PLR0913  each is an option of the command
    learner: Annotated[list[str], typer.Option(help="protonet or maml; both by default.")] = list(  # noqa: B006
        CONFIGS
    ),
    ways: Annotated[int, typer.Option(min=2, help="Classes of a test episode.")] = 5,
    shots: Annotated[int, typer.Option(min=1, help="Labelled drawings of each.")] = 1,
    data: Annotated[
        Path | None, typer.Option(help="The folder with omniglot-py; else $RAYMTL_DATA.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Ray Train workers.")] = 2,
    full: Annotated[bool, typer.Option("--full", help="The papers' protocol, for a GPU.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="4 steps; its numbers say nothing.")
    ] = False,
    save: Annotated[Path | None, typer.Option("--json", help="Where to write the rows.")] = None,
) -> None:
    """Prints the accuracies with 95 % intervals over test episodes."""
    if data:
        os.environ["RAYMTL_DATA"] = str(data.absolute())
    length = length_of(quick, full)
    measured = []
    with tempfile.TemporaryDirectory() as output:
        for name in learner:
            experiment = chosen(name, ways, shots, device, workers, length)
            measured.append({"learner": name, **measure(experiment, Path(output))})
    if save:
        save.write_text(json.dumps(measured, indent=2))
    Console().print(table_of(measured, f"{ways}-way {shots}-shot, %"))


if __name__ == "__main__":
    typer.run(main)
