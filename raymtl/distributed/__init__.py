"""Ray Train around the training loop.

Importing this package sets what Ray reads from the environment when it is imported.
"""

import os

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # At the default of 2 s reports are throttled to one in 2 s, and a killed worker loses a
    # committed checkpoint.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Without it the dashboard knows of no run of Ray Train.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    # Workers would run at nice 15, behind everything else on the machine.
    "RAY_worker_niceness": "0",
    # The run folder has its own tables and event files; Tune's would be a second, slower copy of
    # them.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # We show the progress ourselves.
    "RAY_AIR_NEW_OUTPUT": "0",
    # glibc gives blocks above 32 MiB back to the system at once and asks for them again at the next
    # step. Kept, they make steps of large tensors up to 1.8 times as fast (docs/scaling.md).
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**26),
    # A trial that failed reports its reason and no metric.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}

PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Whether an actor of Ray Train asks if a machine of the workers is about to be taken back.

On a single machine each worker asks by itself. The actor takes 2 s to start and is left out.
"""

for _key, _value in ENVIRONMENT.items():
    os.environ.setdefault(_key, _value)


def worker_environment() -> dict[str, str]:
    """ENVIRONMENT for workers on other machines, where a setting of the user's own wins."""
    return {key: os.environ[key] for key in ENVIRONMENT}
