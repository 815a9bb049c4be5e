"""`ray down`, after everything else."""

import time

import pytest

from tests.cluster.hosts import Cluster, until

pytestmark = pytest.mark.cluster


def test_down_ends_everything(cluster: Cluster) -> None:
    start = time.monotonic()
    cluster.down()
    down = time.monotonic() - start
    until(lambda: not cluster.hosts_of("[r]aylet"), "the workers to follow", 60)
    print(f"ray down: {down:.0f} s")
