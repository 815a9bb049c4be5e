"""Ray Tune and Optuna around the trial; the study's journal is the one source of truth, so a search resumes exactly."""

import os

# The run folder has its own tables and event files; Tune's would be a second, slower copy of them.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# We show the progress ourselves.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# A trial that failed reports its reason and no metric.
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")

from raymtl.tune.trial import run_trial  # isort: skip  (sets what Ray reads when it is imported)
from raymtl.tune.run import run_search, scheduler
from raymtl.tune.searcher import Search
from raymtl.tune.study import STATES, open_study, reports, trial_rows, winner

__all__ = ["STATES", "Search", "open_study", "reports", "run_search", "run_trial", "scheduler", "trial_rows", "winner"]
