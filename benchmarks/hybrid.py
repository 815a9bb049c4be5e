"""Multi-task pre-training, then meta-training, against meta-training alone at equal budget.

    python -m benchmarks.hybrid [--config tune_configs/hybrid.yaml] [--seeds 3]
        [--first 0 100 200 300] [--json FILE]

`first` are the steps of the first stage; 0 is meta-training alone. Every row is a training of the
configuration's steps with each seed, scored on its held-out test episodes after adaptation. Behind
± is half the width of the 95 % interval over seeds, by Student's t; the second column is the paired
difference to meta-training alone.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from raymtl.config import Experiment, load
from raymtl.evaluation.evaluate import evaluate
from raymtl.storage.formats import load_params
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop


def with_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and the half-width of its 95 % interval by Student's t."""
    column = torch.tensor(values, dtype=torch.float64)
    if len(values) < 2:
        return float(column.mean()), float("nan")
    t = float(stats.t.ppf(0.975, len(values) - 1))
    return float(column.mean()), t * float(column.std()) / len(values) ** 0.5


def plans(written: Experiment, first: int, seed: int) -> Experiment:
    """The configuration with a first stage of so many steps, or none."""
    stage = written.stages[0].model_copy(update={"steps": first})
    return written.override({"seed": seed, "stages": [stage.model_dump()] if first else []})


def measured(chosen: Experiment) -> dict[str, Any]:
    """Score on test episodes before and after adaptation, and the seconds of the training."""
    arrays = chosen.data.load()
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), time.perf_counter()
        train_loop(
            chosen,
            arrays,
            local_batches(chosen, arrays),
            TrainContext(lambda _: None, lambda _: None),
            folder,
        )
        seconds = time.perf_counter() - started
        params = load_params(folder / "model.safetensors")
    scores = evaluate(chosen, chosen.build(), params, arrays).metrics["score"]
    before, after = (scores[when] and scores[when]["mean"] for when in ("before", "after"))
    return {"before": before, "after": after, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("tune_configs/hybrid.yaml"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, nargs="+", default=[0, 100, 200, 300])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    written = load(options.config)
    rows = {
        first: [measured(plans(written, first, seed)) for seed in range(options.seeds)]
        for first in options.first
    }
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    print(
        "| first stage | score, adapted | against none | score, unadapted | seconds "
        "|\n|---|---|---|---|---|"
    )
    for first, runs in rows.items():
        after = [run["after"] for run in runs]
        apart = [a - run["after"] for a, run in zip(after, rows[options.first[0]], strict=True)]
        columns = (after, apart, [run["before"] for run in runs])
        cells = (f"{mean:.3f} ± {half:.3f}" for mean, half in map(with_interval, columns))
        print(
            f"| {first} | {' | '.join(cells)} | "
            f"{sum(run['seconds'] for run in runs) / len(runs):.0f} |"
        )


if __name__ == "__main__":
    main()
