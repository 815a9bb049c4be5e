"""Ray Tune and Optuna around the trial. All state of a search is in the study's journal, so a
search resumes exactly.
"""

import raymtl.distributed  # noqa: F401  (sets what Ray reads when it is imported)
from raymtl.pipeline.search.run import run_search, scheduler
from raymtl.pipeline.search.searcher import Search
from raymtl.pipeline.search.study import STATES, open_study, reports, trial_rows, winner
from raymtl.pipeline.search.trial import run_trial

__all__ = [
    "STATES",
    "Search",
    "open_study",
    "reports",
    "run_search",
    "run_trial",
    "scheduler",
    "trial_rows",
    "winner",
]
