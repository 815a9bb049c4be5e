"""A trial of the search, as a plain function."""

from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from raymtl.cluster.capacity import Plan
from raymtl.config import Experiment
from raymtl.data import Arrays
from raymtl.distributed.carried import Carried
from raymtl.distributed.trainer import TrainerSpec, is_machine_preempted, train
from raymtl.evaluation.kept import BEST_STEP
from raymtl.reporting.ray_metrics import observer
from raymtl.storage import fence, formats
from raymtl.training import checkpoint
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import DivergedError, UserError


def run_trial(
    values: dict[str, Any], experiment: Carried, run: str, arrays: Arrays, plan: Plan
) -> None:
    """Trains one configuration and reports every score. An interrupted trial continues from its
    last checkpoint.

    Scores from before the checkpoint are reported again, so that the scheduler decides as if there
    had been no interruption. Scores of a trial with Train workers are repeated too, because a
    report can be lost together with a worker.
    """
    number = values["number"]
    chosen = experiment.unpack().override(
        {key: value for key, value in values.items() if key != "number"}
    )
    folder, name = Path(run) / "trials" / f"{number:04d}", f"{Path(run).name}/trial-{number:04d}"
    # From here on nothing of an earlier attempt arrives, so what is reported again is all that was
    # ever scored.
    attempt = fence.claim(folder)
    attempt.publish(folder / "config.yaml", chosen.model_copy(update={"search": {}}).save)
    done = checkpoint.newest_step(folder)
    _report_again(chosen, folder, range(1, done + 1))
    try:
        if plan.workers == 1:
            _train_in_this_process(chosen, arrays, folder, name, plan)
            return
        spec = TrainerSpec(
            name=name,
            ray_folder=Path(run) / ".ray" / "trials",
            workers=plan.workers,
            cpus=plan.cpus,
            gpus=plan.gpus,
            callbacks=(TuneReportCallback(),),
        )
        train(chosen, ray.put(arrays), folder, spec)
        _report_again(chosen, folder, range(done + 1, chosen.train.steps + 1))
    except (DivergedError, UserError) as error:
        tune.report({"step": 0, "failed": str(error)})


def _train_in_this_process(
    chosen: Experiment, arrays: Arrays, folder: Path, name: str, plan: Plan
) -> None:
    torch.set_num_threads(max(1, int(plan.cpus)))
    device = torch.device("cpu")
    if plan.gpus and torch.cuda.is_available():
        device = torch.device("cuda")
    context = TrainContext(
        tune.report,
        observer(name, chosen.data.task_names),
        device=device,
        is_preempted=is_machine_preempted,
    )
    train_loop(chosen, arrays, local_batches(chosen, arrays), context, folder)


def _report_again(chosen: Experiment, folder: Path, steps: range) -> None:
    """Reports the scores of these steps that the history of the model folder holds."""
    if steps:
        history = [
            row for row in formats.read_rows(folder / "history.parquet") if row["step"] < steps.stop
        ]
    else:
        history = []
    params = sum(value.numel() for value in chosen.build(pretrained=False).init_params().values())
    for row in history:
        if row["step"] in steps and row.get("val.score") is not None:
            seconds = sum(r["seconds"] for r in history if r["step"] <= row["step"])
            scores = {
                key: value
                for key, value in row.items()
                if (key.startswith("val.") or key == BEST_STEP) and value is not None
            }
            tune.report(
                {**scores, "step": row["step"], "num_parameters": params, "seconds": seconds}
            )
