"""Metrics of a training for Ray's Prometheus endpoint."""

import math
import time
from collections.abc import Callable, Mapping

from ray.util.metrics import Gauge

STEP_METRICS = ("step", "lr", "grad_norm", "seconds", "data_wait_pct", "communication_pct")

DATA_METRICS = ("read_mb", "builder_cpu_pct")
"""Those of steps whose files are streamed, and whose episodes builders build."""

SET_S = 1.0
"""How often the metrics are set at most, apart from scores: Ray exports them every few seconds."""


def observer(run: str, task_names: tuple[str, ...]) -> Callable[[Mapping[str, float | None]], None]:
    """A function that puts the numbers of a step, and its scores, into Ray's metrics, tagged by run
    and by task or score.
    """
    tags = {"run": run}
    plain = {
        name: Gauge(f"raymtl_{name}", description=f"{name} of the outer step", tag_keys=("run",))
        for name in (*STEP_METRICS, *DATA_METRICS)
    }
    loss = Gauge("raymtl_loss", description="query loss of a task", tag_keys=("run", "task"))
    weight = Gauge("raymtl_weight", description="weight of a task", tag_keys=("run", "task"))
    score = Gauge(
        "raymtl_score", description="score on the validation split", tag_keys=("run", "score")
    )

    set_at = -math.inf

    def observe(row: Mapping[str, float | None]) -> None:
        nonlocal set_at
        now = time.monotonic()
        if now - set_at < SET_S and not any(name.startswith("val.") for name in row):
            return
        set_at = now
        for name in STEP_METRICS:
            plain[name].set(row[name], tags)
        for name in DATA_METRICS:
            if row.get(name) is not None:
                plain[name].set(row[name], tags)
        for task in task_names:
            if row[f"loss.{task}"] is not None:
                loss.set(row[f"loss.{task}"], tags | {"task": task})
            weight.set(row[f"weight.{task}"], tags | {"task": task})
        for name, value in row.items():
            if name.startswith("val.") and value is not None:
                score.set(value, tags | {"score": name})

    return observe
