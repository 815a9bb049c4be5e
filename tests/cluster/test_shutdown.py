"""`ray down`, after everything else."""

import time

import pytest

from tests.cluster.hosts import Cluster, until

pytestmark = pytest.mark.cluster
RAY = "[r]aylet/raylet|[r]ay::|[g]cs_server"
FOLLOWED_S = 180
"""The workers' raylets notice after one minute, their agents after another."""


def test_down_ends_everything(cluster: Cluster) -> None:
    start = time.monotonic()
    cluster.down()
    down = time.monotonic() - start
    assert down < 60
    until(lambda: not cluster.hosts_of(RAY), "the workers to follow", FOLLOWED_S)
    print(f"ray down: {down:.0f} s")
