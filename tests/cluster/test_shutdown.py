"""`ray down`, after everything else."""

import time

import pytest

from tests.cluster.hosts import Cluster, until

pytestmark = pytest.mark.cluster
RAY = "[r]aylet/raylet|[g]cs_server|[r]ay::(IDLE|RayTrain|ImplicitFunc|TrainController)"
"""Not its agents, which stay on the workers until Ray is started or stopped there (docs/cluster.md)."""


def test_down_ends_everything(cluster: Cluster) -> None:
    start = time.monotonic()
    cluster.down()
    down = time.monotonic() - start
    assert down < 60
    until(lambda: not cluster.hosts_of(RAY), "the workers to follow", 90)
    print(f"ray down: {down:.0f} s")
