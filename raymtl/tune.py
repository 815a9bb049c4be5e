"""Ray Tune and Optuna around the trial; the study's journal is the one source of truth, so a search resumes exactly."""

import math
import os
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

# The run folder has its own tables and event files; Tune's would be a second, slower copy of them.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# We show the progress ourselves.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# A trial that failed reports its reason and no metric.
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")

from raymtl.train import observer, train  # isort: skip  (sets what Ray reads when it is imported)

import optuna
import ray
import torch
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raymtl import checkpoint, config, runs, shortage, storage
from raymtl.cluster.room import DRIVER_MEMORY, Plan
from raymtl.config import Experiment
from raymtl.data import Arrays
from raymtl.journal import Journal
from raymtl.loop import Host, local_batches, train_loop
from raymtl.progress import Row, View, described
from raymtl.search import default_params, suggest
from raymtl.types import DivergedError, UserError

if TYPE_CHECKING:  # the processes of trials, which import this, do not need it
    from raymtl.board.board import Board

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
}
REPORT = "report."
"""Beginning of the names under which the study keeps what a trial reported, by the step."""
PROCESS_ENDED = "the trial's process ended with an error"
TABLE_SHARE = 0.02
"""Largest share of its time that a search spends on writing trials.parquet, which grows with every trial."""


def open_study(run: Path, experiment: Experiment) -> optuna.Study:
    """The study of the run folder, made if there is none."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = JournalStorage(Journal(run / "study.journal"))
    directions = [
        StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE for mode in experiment.tune.modes
    ]
    return optuna.create_study(storage=journal, study_name=experiment.name, directions=directions, load_if_exists=True)


class Search(Searcher):
    """Optuna as Ray Tune's search algorithm, telling it the truth, and resumable from its journal alone.

    It differs from Ray's OptunaSearch where that would harm a search: a trial that ASHA stopped is told as PRUNED and
    not as a complete one with a truncated value, a diverged or failed one as FAIL instead of staying RUNNING, and the
    sampler's chances are a function of (seed, trial number), so that a resumed search repeats no point and goes on as
    if it had never stopped. Trials that a killed driver left unfinished are run again under their own number.
    """

    def __init__(self, experiment: Experiment, run: Path) -> None:
        super().__init__()  # metric and mode are the study's own
        self.experiment, self.run = experiment, run
        self.defaults = experiment.flat()
        self.study = open_study(run, experiment)
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.unfinished = [trial.number for trial in running]
        self.numbers: dict[str, int] = {}
        self.reported: dict[int, set[int]] = {}
        self.write_from = 0.0

    def suggest(self, trial_id: str) -> Any:
        if self.unfinished:
            number = self.unfinished.pop(0)
            self.study.sampler = self._sampler(number)  # it may have been killed before all its values were drawn
            trial = self._trial(number)
        else:
            known = self.study.get_trials(deepcopy=False)  # `study.trials` copies them all, which soon takes seconds
            asked = [t for t in known if t.state != TrialState.WAITING]
            if len(asked) >= self.experiment.tune.trials:
                return Searcher.FINISHED
            if not known and self.experiment.tune.default_first:
                own = default_params(self.experiment.search, self.defaults)
                if own is not None:
                    self.study.enqueue_trial(own)
            self.study.sampler = self._sampler(len(asked))
            trial = self.study.ask()
        values = trial.user_attrs.get("values")
        if values is None:
            drawn = suggest(self.experiment.search, self.defaults, trial)
            flat = self.experiment.override(drawn).flat()
            values = {key: flat[key] for key in drawn}  # as validated: 1e-2 in YAML is a text until then
            trial.set_user_attr("values", values)
        self.numbers[trial_id] = trial.number
        self.reported[trial.number] = set()
        return {"number": trial.number, **values}

    def _sampler(self, number: int) -> TPESampler:
        settings = self.experiment.tune.sampler
        with warnings.catch_warnings():
            # TPE's multivariate and group options call themselves experimental at every construction.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(
                n_startup_trials=settings.startup_trials,
                n_ei_candidates=settings.candidates,
                multivariate=settings.multivariate,
                group=settings.multivariate,
                constant_liar=True,
                seed=(self.experiment.seed * 1_000_003 + number) % 2**32,
            )

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._record(self.numbers[trial_id], result)

    def _record(self, number: int, result: dict[str, Any]) -> None:
        """Puts the scores of one step into the journal, once."""
        if "failed" in result or "step" not in result or result["step"] in self.reported[number]:
            return
        step = int(result["step"])
        self.reported[number].add(step)
        trial = self._trial(number)
        # Each under a name of its own: the journal would repeat all of them with every one.
        trial.set_user_attr(f"{REPORT}{step}", {key: value for key, value in result.items() if _is_metric(key)})
        if len(self.experiment.tune.metrics) == 1:
            trial.report(result[self.experiment.tune.metrics[0]], step)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self.numbers.pop(trial_id)
        result = result or {}
        values = [result.get(metric) for metric in self.experiment.tune.metrics]
        reason = result.get("failed") or (PROCESS_ENDED if error else None)
        if not reason and not all(value is not None and math.isfinite(value) for value in values):
            reason = "the trial ended without a finite objective"
        self._record(number, result)  # Tune passes the report that ends a trial on to here alone
        trial = self._trial(number)
        if reason:
            trial.set_user_attr("reason", reason)
            self.study.tell(number, state=TrialState.FAIL)
        elif result["step"] < self.experiment.train.steps:
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            self.study.tell(number, values=[float(value) for value in values if value is not None])
        self._write_table()

    def _write_table(self) -> None:
        """Writes trials.parquet, whole, in at most `TABLE_SHARE` of the time; `run_search` writes it at the end."""
        began = time.monotonic()
        if began >= self.write_from:
            runs.write_rows(self.run / "trials.parquet", trial_rows(self.study))
            ended = time.monotonic()
            self.write_from = ended + (ended - began) / TABLE_SHARE

    def _trial(self, number: int) -> optuna.Trial:
        storage = self.study._storage
        return optuna.Trial(self.study, storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number))

    def __getstate__(self) -> dict[str, Any]:
        # Tune keeps a pickle of its parts. Nothing is restored from it: the journal holds everything.
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal holds everything."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal holds everything."""


def _is_metric(key: str) -> bool:
    return key.startswith("val.") or key in ("num_parameters", "seconds")


def reports(trial: optuna.trial.FrozenTrial) -> dict[int, dict[str, float]]:
    """Step -> what the trial reported then, in order."""
    found = {int(key[len(REPORT) :]): value for key, value in trial.user_attrs.items() if key.startswith(REPORT)}
    return dict(sorted(found.items()))


def trial_rows(study: optuna.Study) -> list[dict[str, Any]]:
    """The rows of trials.parquet."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        told = reports(trial)
        step = max(told, default=0)
        last = told.get(step, {})
        rows.append(
            {
                "number": trial.number,
                "state": STATES[trial.state],
                "step": step,
                "seconds": last.get("seconds"),
                "reason": trial.user_attrs.get("reason"),
                **trial.user_attrs.get("values", {}),
                **{key: value for key, value in last.items() if key != "seconds"},
            }
        )
    return rows


def run_search(
    experiment: Experiment, run: Path, arrays: Arrays, settings: Plan, view: View, board: "Board"
) -> optuna.Study:
    """Runs the trials that the study still lacks; returns it. Raises UserError if the search was interrupted."""
    search = Search(experiment, run)
    ended = [t for t in search.study.get_trials(deepcopy=False) if t.state.is_finished()]
    remaining = experiment.tune.trials - len(ended)
    for trial in ended:
        view.show(f"trial {trial.number}", _row(experiment, trial_rows(search.study)[trial.number]))
    if remaining > 0:
        nested = settings.workers > 1
        # Drivers of nested trainings take no CPU: the workers that they wait for need them. Ray wants them to take
        # something, so it is some memory.
        bundle = {"memory": DRIVER_MEMORY} if nested else {"CPU": settings.cpus, "GPU": settings.gpus}
        resources = tune.PlacementGroupFactory([{name: amount for name, amount in bundle.items() if amount}])
        runnable = tune.with_parameters(
            run_trial, experiment=experiment.model_dump(mode="json"), run=str(run), arrays=arrays, plan=settings
        )
        tuner = tune.Tuner(
            tune.with_resources(runnable, resources),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler(experiment, search.study),
                num_samples=remaining,
                max_concurrent_trials=settings.concurrency,
                reuse_actors=not nested,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=f"search-{len(ended)}",
                storage_path=str(run / ".ray"),
                failure_config=tune.FailureConfig(max_failures=experiment.train.max_failures),
                callbacks=[Watcher(experiment, settings, view, board)],
                verbose=0,
            ),
        )
        with shortage.ends_the_trial_alone():
            tuner.fit()
    runs.write_rows(run / "trials.parquet", trial_rows(search.study))
    known = search.study.get_trials(deepcopy=False)
    if len(known) < experiment.tune.trials or not all(trial.state.is_finished() for trial in known):
        raise UserError(f"{run}: the search was interrupted. Continue it with --resume.")
    return search.study


def scheduler(experiment: Experiment, study: optuna.Study) -> TrialScheduler:
    """ASHA with the rungs that the study's earlier trials left, or none."""
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


def run_trial(values: dict[str, Any], experiment: dict[str, Any], run: str, arrays: Arrays, plan: Plan) -> None:
    """One trial, a plain function: trains, reporting every score, from its last checkpoint if it was interrupted.

    Scores from before the checkpoint are reported again, so that the scheduler decides as if nothing had happened.
    """
    number = values["number"]
    chosen = config.parse(experiment).override({key: value for key, value in values.items() if key != "number"})
    folder, name = Path(run) / "trials" / f"{number:04d}", f"{Path(run).name}/trial-{number:04d}"
    storage.publish(folder / "config.yaml", chosen.model_copy(update={"search": {}}).save)
    done = checkpoint.newest_step(folder)
    history = [row for row in runs.read_rows(folder / "history.parquet") if row["step"] <= done] if done else []
    earlier = [row for row in history if row.get("val.score") is not None]
    params = sum(value.numel() for value in chosen.build().init_params().values())
    for row in earlier:
        seconds = sum(r["seconds"] for r in history if r["step"] <= row["step"])
        scores = {key: value for key, value in row.items() if key.startswith("val.")}
        tune.report({**scores, "step": row["step"], "num_parameters": params, "seconds": seconds})
    try:
        if plan.workers > 1:
            train(
                chosen, ray.put(arrays), folder, name=name, ray_folder=Path(run) / ".ray" / "trials",
                workers=plan.workers, cpus=plan.cpus, gpus=plan.gpus, callbacks=(TuneReportCallback(),),
            )  # fmt: skip
            return
        torch.set_num_threads(max(1, int(plan.cpus)))
        device = torch.device("cuda" if plan.gpus and torch.cuda.is_available() else "cpu")
        host = Host(tune.report, observer(name, chosen.data.task_names), device=device)
        train_loop(chosen, arrays, local_batches(chosen, arrays), host, folder)
    except (DivergedError, UserError) as error:
        tune.report({"step": 0, "failed": str(error)})


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config.get('number', 0):04d}"


def _values(trial: Any) -> dict[str, Any]:
    """Dotted name -> searched value."""
    return {key: value for key, value in trial.config.items() if key != "number"}


class Watcher(tune.Callback):
    """Passes what Tune sees on to the view and to the board."""

    def __init__(self, experiment: Experiment, plan: Plan, view: View, board: "Board") -> None:
        self.experiment, self.plan, self.view, self.board = experiment, plan, view, board

    def __getstate__(self) -> dict[str, Any]:
        # Tune keeps a pickle of its parts, and neither a terminal nor the board has a place in it.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._show(trial, {}, "running")
        # Of several workers, it is a run of Ray Train by itself, and this actor waits for it.
        actor = trial.temporary_state.ray_actor if self.plan.workers == 1 else None
        resources = {"CPU": self.plan.cpus, "GPU": self.plan.gpus}
        self.board.started(_trial_name(trial), _values(trial), actor, resources)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "failed" not in result:
            self._show(trial, result, "running")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        pruned = result.get("step", 0) < self.experiment.train.steps
        state = "failed" if "failed" in result else "pruned" if pruned else "complete"
        shown = self._show(trial, result, state)
        at = f"at step {shown.step} of {shown.steps}"
        self.board.ended(_trial_name(trial), state, result.get("failed") or f"{at} {shown.score}".rstrip())

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._show(trial, trial.last_result or {}, "failed")
        self.board.ended(_trial_name(trial), "failed", PROCESS_ENDED)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.board.ended(_trial_name(trial), "restarting", PROCESS_ENDED)

    def _show(self, trial: Any, result: dict[str, Any], state: str) -> Row:
        row = {
            "step": result.get("step", 0),
            "state": state,
            "reason": result.get("failed"),
            **result,
            **_values(trial),
        }
        shown = _row(self.experiment, row)
        self.view.show(f"trial {trial.config['number']}", shown)
        return shown


def _row(experiment: Experiment, row: dict[str, Any]) -> Row:
    metric = experiment.tune.metrics[0]
    score = f"{metric} {row[metric]:.4f}" if row.get(metric) is not None else ""
    return Row(
        row["step"], experiment.train.steps, row["state"], score, row.get("reason") or described(row, experiment.search)
    )


def winner(study: optuna.Study, experiment: Experiment) -> optuna.trial.FrozenTrial:
    """The trial with the best first objective among those that reached the full number of steps.

    Raises UserError where no trial did.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        reasons = [t.user_attrs["reason"] for t in study.trials if "reason" in t.user_attrs]
        raise UserError(
            f"tune.trials: none of {len(study.trials)} trials reached step {experiment.train.steps}"
            + (f"; the first failed because {reasons[0]}" if reasons else "")
            + ". Narrow the ranges under `search`."
        )
    sign = 1 if experiment.tune.modes[0] == "max" else -1
    return max(complete, key=lambda trial: (sign * trial.values[0], -trial.number))
