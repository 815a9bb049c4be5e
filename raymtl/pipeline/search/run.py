"""The search: Ray Tune around the trials that the study still lacks."""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import optuna
from ray import tune
from ray.tune.error import TuneError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from raymtl.cluster.capacity import DRIVER_MEMORY, Plan
from raymtl.config import Experiment
from raymtl.data import Arrays
from raymtl.distributed.carried import carry
from raymtl.pipeline.search import shortage
from raymtl.pipeline.search.lost import lost_in_one_line
from raymtl.pipeline.search.searcher import Search
from raymtl.pipeline.search.study import reports, trial_rows
from raymtl.pipeline.search.trial import run_trial
from raymtl.pipeline.search.watcher import Watcher, row_of, trial_name
from raymtl.reporting.terminal import View
from raymtl.storage import formats
from raymtl.storage.fence import Attempt
from raymtl.types import UserError

if TYPE_CHECKING:
    from raymtl.reporting.ray_dashboard.dashboard import Dashboard


def run_search(
    experiment: Experiment,
    attempt: Attempt,
    arrays: Arrays,
    settings: Plan,
    view: View,
    board: "Dashboard",
) -> optuna.Study:
    """Runs the trials that the study still lacks, and returns the attempt at the run that it made.

    Raises UserError if the search was interrupted, and Superseded if another attempt has replaced
    this one.
    """
    run = attempt.folder
    search = Search(experiment, run, attempt)
    ended = [t for t in search.study.get_trials(deepcopy=False) if t.state.is_finished()]
    remaining = experiment.tune.trials - len(ended)
    for trial in ended:
        view.show(
            f"trial {trial.number}", row_of(experiment, trial_rows(search.study)[trial.number])
        )
    if remaining > 0:
        tuner = tune.Tuner(
            _trainable(experiment, run, arrays, settings),
            tune_config=_tune_config(search, remaining, settings),
            run_config=tune.RunConfig(
                name=f"search-{len(ended)}",
                storage_path=str(run / ".ray"),
                failure_config=tune.FailureConfig(max_failures=experiment.train.max_failures),
                callbacks=[Watcher(experiment, run, view, board)],
                verbose=0,
            ),
        )
        _fit(tuner, attempt, view)
    formats.write_rows(run / "trials.parquet", trial_rows(search.study), attempt.publish)
    known = search.study.get_trials(deepcopy=False)
    if len(known) < experiment.tune.trials or not all(trial.state.is_finished() for trial in known):
        raise UserError(f"{run}: the search was interrupted. Continue it with --resume.")
    return search.study


def _fit(tuner: tune.Tuner, attempt: Attempt, view: View) -> None:
    try:
        with shortage.ends_the_trial_alone(), lost_in_one_line(view.say):
            tuner.fit()
    except TuneError:  # as which Tune raises whatever the searcher raised
        attempt.check()
        raise


def _trainable(experiment: Experiment, run: Path, arrays: Arrays, settings: Plan) -> Any:
    """`run_trial` with its arguments, and with the resources that Ray Tune reserves for it."""
    # Drivers of trainings with workers of their own take no CPU: the workers that they wait for
    # need them. Ray wants the drivers to take something, so it is some memory.
    bundle = {"CPU": settings.cpus, "GPU": settings.gpus}
    if settings.workers > 1:
        bundle = {"memory": DRIVER_MEMORY}
    amounts = {name: amount for name, amount in bundle.items() if amount}
    runnable = tune.with_parameters(
        run_trial,
        experiment=carry(experiment),
        run=str(run),
        arrays=arrays,
        plan=settings,
    )
    return tune.with_resources(runnable, tune.PlacementGroupFactory([amounts]))


def _tune_config(search: Search, num_trials: int, settings: Plan) -> tune.TuneConfig:
    return tune.TuneConfig(
        search_alg=search,
        scheduler=scheduler(search.experiment, search.study),
        num_samples=num_trials,
        max_concurrent_trials=settings.concurrency,
        reuse_actors=settings.workers == 1,
        trial_name_creator=trial_name,
        trial_dirname_creator=trial_name,
    )


def scheduler(experiment: Experiment, study: optuna.Study) -> TrialScheduler:
    """ASHA with the rungs of the study's earlier trials, or None if the configuration has no
    `tune.asha`.
    """
    asha = experiment.tune.asha
    if asha is None:
        return FIFOScheduler()
    metric = experiment.tune.asha_metric
    modes = dict(zip(experiment.tune.metrics, experiment.tune.modes, strict=True))
    made = ASHAScheduler(
        time_attr="step",
        metric=metric,
        mode=modes.get(metric, "max" if experiment.metric_directions()[metric] else "min"),
        max_t=experiment.train.steps,
        grace_period=asha.grace,
        reduction_factor=asha.reduction,
        # Otherwise ASHA stops trials at their last step, before they are told as complete.
        stop_last_trials=False,
    )
    controller: Any = None  # ASHA does not look at it
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished():
            earlier: Any = SimpleNamespace(trial_id=f"earlier-{trial.number}")
            made.on_trial_add(controller, earlier)
            for step, metrics in reports(trial).items():
                made.on_trial_result(controller, earlier, {"step": step, **metrics})
    return made
