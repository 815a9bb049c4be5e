"""MAML's regression at its full protocol, and a searched configuration beside it.

    python -m benchmarks.sinusoid

Both are tune_configs/sinusoid.yaml with some values of their own, trained by what `raymtl train`
calls, and scored on the same test sinusoids after 0, 1, 5 and 10 inner steps. Who does not adapt
cannot do better than the mean over all sinusoids, whose error on these very points is printed too.
"""

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from raymtl import config, run_folder
from raymtl.config import Experiment
from raymtl.data.episodes import build_episodes
from raymtl.data.sources.curves import AMPLITUDE
from raymtl.evaluation.evaluate import evaluate, load_model
from raymtl.storage import formats

CONFIG = Path(__file__).parent.parent / "tune_configs" / "sinusoid.yaml"
STEPS = (0, 1, 5, 10)
BUDGET = {"train.steps": 50_000, "train.eval_every": 5_000, "evaluate.test_episodes": 1_000}
ROWS: dict[str, dict[str, Any]] = {
    "maml": {},
    "searched": {
        "learner.name": "meta_sgd",
        "learner.adapts": ["heads.*"],
        "learner.inner_steps": 5,
        "learner.inner_lr": 0.03,
        "train.lr": 0.002,
    },
}
"""What each row changes in the file; `searched` is the best of some settings tried for fewer steps.
"""
REFERENCE = {"MAML": ("", "0.325", "0.158", "0.107"), "CAVIA": ("", "0.177", "0.040", "0.030")}
"""What to reach: measured at this protocol with one seed, without intervals."""


def chosen(row: str, workers: int, quick: bool) -> Experiment:
    """The configuration of a row."""
    values = {**ROWS[row], **BUDGET, "train.workers": workers, "name": f"sinusoid-{row}"}
    if quick:
        values |= {
            "train.steps": 20,
            "train.eval_every": 20,
            "tune.asha": None,
            "evaluate.test_episodes": 20,
        }
    return config.load(CONFIG).override(values)


def scores(folder: Path) -> list[dict[str, float]]:
    """`mean` and `ci95` of the MSE of a trained model after each of STEPS."""
    experiment, algorithm, params = load_model(folder)
    if 2 * algorithm.learner.num_steps < STEPS[-1]:  # scores go up to twice the steps of training
        experiment = experiment.override({"learner.inner_steps": STEPS[-1]})
        algorithm = experiment.build()
    curve = evaluate(experiment, algorithm, params, experiment.data.load()).metrics["curve"]
    return [
        {key: curve["y.mse"][key][curve["steps"].index(step)] for key in ("mean", "ci95")}
        for step in STEPS
    ]


def unadapted(count: int) -> dict[str, float]:
    """The same of the mean over all sinusoids, -2/pi E[A] cos x, the best without a support set:
    3.006 on average.
    """
    experiment = chosen("maml", workers=1, quick=False)
    (episodes,), _ = build_episodes(
        experiment.data, {}, seed=experiment.seed, split="test", step=0, indices=range(count)
    )
    x = episodes.query.inputs
    assert isinstance(x, Tensor)
    mean = -2 / math.pi * sum(AMPLITUDE) / 2 * x[..., 0].cos()
    errors = (mean - episodes.query.targets["y"]).square().mean(1)
    return {
        "mean": float(errors.mean()),
        "ci95": 1.96 * float(errors.std()) / math.sqrt(len(errors)),
    }


def measure(row: str, workers: int, quick: bool, output: Path) -> dict[str, Any]:
    """Trains and scores a row: its part of the JSON file."""
    # Here and not above: what Ray reads is set where it is imported first.
    from raymtl.pipeline.pipeline import train_run

    experiment = chosen(row, workers, quick).override({"output": str(output)})
    start = time.perf_counter()
    run = run_folder.create(experiment)
    train_run(experiment, run, experiment.data.load(), None)
    metrics = formats.read_json(run / "best" / "metrics.json")
    return {
        "row": row,
        "mse": dict(zip(map(str, STEPS), scores(run / "best"), strict=True)),
        "train_seconds": metrics["train_seconds"],
        "seconds": time.perf_counter() - start,
        "steps_per_second": experiment.train.steps / metrics["train_seconds"],
        "learner": experiment.learner.model_dump(mode="json"),
        "lr": experiment.train.lr,
    }


def main(
    row: Annotated[list[str], typer.Option(help="Rows to measure; all by default.")] = list(ROWS),  # noqa: B006
    workers: Annotated[int, typer.Option(min=1, help="Ray Train workers of one CPU each.")] = 2,
    quick: Annotated[
        bool, typer.Option("--quick", help="20 steps; its numbers say nothing.")
    ] = False,
    save: Annotated[Path | None, typer.Option("--json", help="Where to write the rows.")] = None,
) -> None:
    """Prints the mean squared errors with 95 % intervals over test sinusoids."""
    with tempfile.TemporaryDirectory() as output:
        measured = [measure(name, workers, quick, Path(output)) for name in row]
    if save:
        save.write_text(json.dumps(measured, indent=2))
    table = Table("", *(f"{step} steps" for step in STEPS), "train s", "steps/s")
    for result in measured:
        cells = [f"{score['mean']:.3f} ± {score['ci95']:.3f}" for score in result["mse"].values()]
        table.add_row(
            result["row"],
            *cells,
            f"{result['train_seconds']:.0f}",
            f"{result['steps_per_second']:.0f}",
        )
    floor = unadapted(20 if quick else BUDGET["evaluate.test_episodes"])
    table.add_row("mean over sinusoids", f"{floor['mean']:.3f} ± {floor['ci95']:.3f}")
    for name, reference in REFERENCE.items():
        table.add_row(f"reference: {name}", *reference)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
