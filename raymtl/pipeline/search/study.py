"""The study of a search, as Optuna's journal records it."""

from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from raymtl.config import Experiment
from raymtl.storage.fence import Attempt
from raymtl.storage.optuna_journal import Journal
from raymtl.types import UserError

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
}
KEPT = "kept_step"
"""The name under which the study keeps the step whose model a complete trial keeps."""
REPORT = "report."
"""Beginning of the names under which the study keeps what a trial reported, by the step."""


def open_study(run: Path, experiment: Experiment, attempt: Attempt | None = None) -> optuna.Study:
    """Opens the study of a run folder, or creates it. With an `attempt`, only the latest attempt at
    the run can write it.
    """
    return study_in(open_storage(run, attempt), experiment)


def open_storage(run: Path, attempt: Attempt | None = None) -> JournalStorage:
    """The journal of the run folder as Optuna's storage."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return JournalStorage(Journal(run / "study.journal", attempt))


def study_in(storage: JournalStorage, experiment: Experiment) -> optuna.Study:
    """The experiment's study in the storage; created if it does not exist."""
    directions = [
        StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE
        for mode in experiment.tune.modes
    ]
    return optuna.create_study(
        storage=storage, study_name=experiment.name, directions=directions, load_if_exists=True
    )


def reports(trial: optuna.trial.FrozenTrial) -> dict[int, dict[str, float]]:
    """The reports of a trial, in order: a mapping from the step to the metrics."""
    by_step = {
        int(key[len(REPORT) :]): value
        for key, value in trial.user_attrs.items()
        if key.startswith(REPORT)
    }
    return dict(sorted(by_step.items()))


def trial_rows(study: optuna.Study) -> list[dict[str, Any]]:
    """The rows of trials.parquet."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        by_step = reports(trial)
        step = max(by_step, default=0)
        last = by_step.get(step, {})
        of_kept = by_step.get(trial.user_attrs.get(KEPT, step), {})
        scores = {key: value for key, value in of_kept.items() if key.startswith("val.")}
        rows.append(
            {
                "number": trial.number,
                "state": STATES[trial.state],
                "step": step,
                "seconds": last.get("seconds"),
                "reason": trial.user_attrs.get("reason"),
                **trial.user_attrs.get("values", {}),
                **{key: value for key, value in last.items() if key != "seconds"},
                **scores,
            }
        )
    return rows


def winner(study: optuna.Study, experiment: Experiment) -> optuna.trial.FrozenTrial:
    """The trial with the best first objective among those that reached the full number of steps.

    Raises UserError if no trial did.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        reasons = [t.user_attrs["reason"] for t in study.trials if "reason" in t.user_attrs]
        raise UserError(
            f"tune.trials: none of {len(study.trials)} trials reached step {experiment.train.steps}"
            + (f"; the first failed because {reasons[0]}" if reasons else "")
            + ". Narrow the ranges under `search`."
        )
    if experiment.tune.modes[0] == "max":
        sign = 1
    else:
        sign = -1
    return max(complete, key=lambda trial: (sign * trial.values[0], -trial.number))
