"""`ray down`, after everything else."""

import time

import pytest

from tests.cluster.hosts import Cluster, until

pytestmark = pytest.mark.cluster
RAYLET = "[r]aylet/raylet"


def test_down_ends_everything(cluster: Cluster) -> None:
    start = time.monotonic()
    cluster.down()
    down = time.monotonic() - start
    until(lambda: not cluster.hosts_of(RAYLET), "the workers to follow", 60)
    assert down < 60
    assert not cluster.hosts_of(f"{RAYLET}|[r]ay::|[g]cs_server")
    print(f"ray down: {down:.0f} s")
