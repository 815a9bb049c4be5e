"""What early stopping saves: `python -m benchmarks.patience`.

    python -m benchmarks.patience                 # 1000 steps at most, patience 5
    python -m benchmarks.patience --steps 300

Trains the configuration with each seed to its end, and with `train.keep: best` and
`train.patience`, by raymtl's own loop. A row says how many steps each made, the score on the test
rows of both, and the 95 % interval of their difference on the same rows. Behind ± in the last row
is half the width of the 95 % interval over seeds, by Student's t.
"""

import tempfile
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.sharing import interval
from raymtl.config import Experiment, load
from raymtl.evaluation.evaluate import SCORE, difference, evaluate
from raymtl.evaluation.intervals import Estimator
from raymtl.storage import formats
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop


class Training(NamedTuple):
    """How a training ended."""

    steps: int
    kept: int
    """The step whose model was kept."""
    score: Estimator
    """On the rows for testing."""


def train(chosen: Experiment) -> Training:
    """Trains in this process, and scores the model that is kept."""
    arrays = chosen.data.load()
    algorithm = chosen.build()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = TrainContext(lambda metrics: None, lambda row: None)
        train_loop(chosen, arrays, local_batches(chosen, arrays), context, folder)
        params = formats.load_params(folder / "model.safetensors", algorithm.init_params())
        rows = formats.read_rows(folder / "history.parquet")
    scored = evaluate(chosen, algorithm, algorithm.take(params), arrays)
    kept = rows[-1].get("best_step") or len(rows)
    return Training(len(rows), kept, scored.estimators[SCORE])


def main(
    config: Annotated[Path, typer.Option(help="What is trained.")] = Path(
        "tune_configs/own-data.yaml"
    ),
    seeds: Annotated[int, typer.Option(min=2, help="How many seeds.")] = 5,
    patience: Annotated[int, typer.Option(help="train.patience of the shorter training.")] = 5,
    metric: Annotated[str, typer.Option(help="train.metric of it.")] = "val.score",
    eval_every: Annotated[int, typer.Option(help="train.eval_every of both.")] = 20,
    steps: Annotated[int, typer.Option(help="train.steps of both.")] = 1000,
) -> None:
    """Prints the table."""
    base = load(config, {"train.eval_every": eval_every, "train.steps": steps})
    table = Table(box=None, pad_edge=False)
    for heading in ("seed", "steps", "score", "with patience", "kept", "score", "difference"):
        table.add_column(heading, justify="right")
    saved, gained = [], []
    for seed in range(seeds):
        whole = train(base.override({"seed": seed}))
        early = {
            "seed": seed,
            "train.keep": "best",
            "train.patience": patience,
            "train.metric": metric,
        }
        short = train(base.override(early))
        gap = difference(short.score, whole.score)
        mean, half = gap["mean"], gap["ci95"]
        assert mean is not None and half is not None
        saved.append(100 * (1 - short.steps / whole.steps))
        gained.append(mean)
        table.add_row(
            *(str(seed), str(whole.steps), f"{whole.score.value:.3f}"),
            *(str(short.steps), str(short.kept), f"{short.score.value:.3f}"),
            f"{mean:+.3f}±{half:.3f}",
        )
    console = Console(highlight=False)
    console.print(table)
    (saved_mean, saved_half), (gap_mean, gap_half) = interval(saved), interval(gained)
    assert saved_half is not None and gap_half is not None
    console.print(
        f"saved {saved_mean:.0f} ± {saved_half:.0f} % of the steps (least {min(saved):.0f} %); "
        f"score {gap_mean:+.3f} ± {gap_half:.3f}"
    )


if __name__ == "__main__":
    typer.run(main)
