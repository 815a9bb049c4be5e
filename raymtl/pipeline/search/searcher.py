"""Optuna as Ray Tune's search algorithm."""

import math
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import TPESampler
from optuna.trial import TrialState
from ray.tune.search import Searcher

from raymtl.config import Experiment
from raymtl.evaluation.kept import BEST_STEP, is_last
from raymtl.pipeline.search.study import KEPT, REPORT, open_storage, study_in, trial_rows
from raymtl.schema.distributions import default_params, suggest
from raymtl.storage import atomic, formats
from raymtl.storage.fence import Attempt

PROCESS_ENDED = "the trial's process ended with an error"
TABLE_SHARE = 0.02
"""Largest share of its time that a search spends on writing trials.parquet, which grows with every
trial.
"""


class Search(Searcher):
    """Optuna as Ray Tune's search algorithm, resumable from its journal alone.

    It differs from Ray's OptunaSearch in four respects. A trial that ASHA stopped is reported to
    Optuna as PRUNED, not as complete with an intermediate value. A diverged or failed trial is
    reported as FAIL instead of staying RUNNING. The sampler's randomness is a function of (seed,
    trial number), so a resumed search repeats no point and continues as if it had never stopped.
    Trials that a killed driver left unfinished run again under their own number.
    """

    def __init__(self, experiment: Experiment, run: Path, attempt: Attempt | None = None) -> None:
        super().__init__()  # metric and mode are the study's own
        self.experiment, self.run = experiment, run
        if attempt:
            self.publish = attempt.publish
        else:
            self.publish = atomic.publish
        self.defaults = experiment.flat()
        self.storage = open_storage(run, attempt)
        self.study = study_in(self.storage, experiment)
        self.study_id = self.storage.get_study_id_from_name(self.study.study_name)
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.unfinished = [trial.number for trial in running]
        self.numbers: dict[str, int] = {}
        self.reported: dict[int, set[int]] = {}
        self.write_from = 0.0

    def suggest(self, trial_id: str) -> Any:
        if self.unfinished:
            number = self.unfinished.pop(0)
            self.study.sampler = self._sampler(
                number
            )  # it may have been killed before all its values were drawn
            trial = self._trial(number)
        else:
            known = self.study.get_trials(
                deepcopy=False
            )  # `study.trials` copies them all, which soon takes seconds
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
            values = {
                key: flat[key] for key in drawn
            }  # as validated: 1e-2 in YAML is a text until then
            trial.set_user_attr("values", values)
        self.numbers[trial_id] = trial.number
        self.reported[trial.number] = set()
        return {"number": trial.number, **values}

    def _sampler(self, number: int) -> TPESampler:
        settings = self.experiment.tune.sampler
        with warnings.catch_warnings():
            # TPE's multivariate and group options call themselves experimental at every
            # construction.
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
        trial.set_user_attr(
            f"{REPORT}{step}", {key: value for key, value in result.items() if _is_metric(key)}
        )
        objective = result.get(self.experiment.tune.metrics[0])
        if len(self.experiment.tune.metrics) == 1 and objective is not None:
            trial.report(objective, step)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self.numbers.pop(trial_id)
        result = result or {}
        kept = self._kept(number, result)
        values = [kept.get(metric) for metric in self.experiment.tune.metrics]
        reason = result.get("failed") or (PROCESS_ENDED if error else None)
        if not reason and not all(value is not None and math.isfinite(value) for value in values):
            reason = "the trial ended without a finite objective"
        self._record(number, result)  # Tune passes the report that ends a trial on to here alone
        trial = self._trial(number)
        if reason:
            trial.set_user_attr("reason", reason)
            self.study.tell(number, state=TrialState.FAIL)
        elif not is_last(self.experiment.train, result["step"], result.get(BEST_STEP)):
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            trial.set_user_attr(KEPT, kept.get("step", result["step"]))
            self.study.tell(number, values=[float(value) for value in values if value is not None])
        self._write_table()

    def _kept(self, number: int, result: dict[str, Any]) -> dict[str, Any]:
        """The last report of a trial, with the scores of the step whose model is kept."""
        best_step = result.get(BEST_STEP)
        if self.experiment.train.keep == "last" or best_step in (None, result.get("step")):
            return result
        reports = self._trial(number).user_attrs
        scores = reports.get(f"{REPORT}{int(best_step)}", {})
        of_model = {key: value for key, value in scores.items() if key.startswith("val.")}
        return {**result, **of_model, "step": int(best_step)}

    def _write_table(self) -> None:
        """Writes trials.parquet, whole, in at most `TABLE_SHARE` of the time; `run_search` writes
        it at the end.
        """
        began = time.monotonic()
        if began >= self.write_from:
            formats.write_rows(self.run / "trials.parquet", trial_rows(self.study), self.publish)
            ended = time.monotonic()
            self.write_from = ended + (ended - began) / TABLE_SHARE

    def _trial(self, number: int) -> optuna.Trial:
        """A trial of the study that can be reported to, though it was asked for earlier."""
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)
        return optuna.Trial(self.study, trial_id)

    def __getstate__(self) -> dict[str, Any]:
        # Tune keeps a pickle of its parts. Nothing is restored from it: the journal holds
        # everything.
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Does nothing, because the journal has all state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, because the journal has all state."""


def _is_metric(key: str) -> bool:
    return key.startswith("val.") or key in ("num_parameters", "seconds", BEST_STEP)
