"""MLflow: a run for the whole, and nested ones for its trainings."""

import os
import time
from collections.abc import Mapping, Sequence

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from raymtl.tracking.tracker import About

MOST_METRICS = 1000
MOST_PARAMS = 100
LONGEST = 500
"""What MLflow takes in one request, and of one value."""
STATES = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
STEP = "step"


class MlflowSink:
    """Writes to $MLFLOW_TRACKING_URI, into the experiment $MLFLOW_EXPERIMENT_NAME (`raymtl`)."""

    name = "mlflow"

    def __init__(self) -> None:
        self.client = MlflowClient()
        self.experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "raymtl")

    @property
    def place(self) -> str:
        """The address of the server and the experiment."""
        return f"{mlflow.get_tracking_uri()} {self.experiment}"

    def begin(self, about: About, parent: str | None) -> str:
        """The run with this key, which is made unless it is there."""
        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            experiment = self.client.create_experiment(self.experiment)
        else:
            experiment = found.experiment_id
        known = self.client.search_runs([experiment], f"tags.raymtl_key = '{about.key}'")
        if known:
            return str(known[0].info.run_id)
        tags = {"raymtl_key": about.key}
        if parent is not None:
            tags[MLFLOW_PARENT_RUN_ID] = parent
        run_id = str(self.client.create_run(experiment, tags=tags, run_name=about.name).info.run_id)
        params = [Param(name, str(value)[:LONGEST]) for name, value in about.values.items()]
        for start in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(run_id, params=params[start : start + MOST_PARAMS])
        return run_id

    def last_step(self, run_id: str) -> int | None:
        """The last step whose number is there."""
        history = self.client.get_metric_history(run_id, STEP)
        return max((metric.step for metric in history), default=0)

    def log(self, run_id: str, rows: Sequence[Mapping[str, float]]) -> None:
        """Whole steps in one request, and the number of the step last."""
        now = int(1000 * time.time())
        batch: list[Metric] = []
        for row in rows:
            step = int(row[STEP])
            names = [name for name in row if name != STEP]
            metrics = [Metric(name, row[name], now, step) for name in (*names, STEP)]
            if len(batch) + len(metrics) > MOST_METRICS:
                self.client.log_batch(run_id, metrics=batch)
                batch = []
            batch += metrics
        if batch:
            self.client.log_batch(run_id, metrics=batch)

    def end(self, run_id: str, state: str, scores: Mapping[str, float]) -> None:
        """The scores without a step, and the state."""
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, 0) for name, value in scores.items()]
        self.client.log_batch(run_id, metrics=metrics, tags=[RunTag("raymtl_state", state)])
        self.client.set_terminated(run_id, STATES[state])

    def close(self) -> None:
        """Nothing waits."""
