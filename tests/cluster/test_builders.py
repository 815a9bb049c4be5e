"""A host that builds episodes and trains nothing is lost: the weights are those of a calm training."""

import pytest

from tests.cluster.hosts import NUM_HOSTS, Cluster, Run
from tests.cluster.test_faults import WORKER, assert_same_training, resumed

pytestmark = pytest.mark.cluster

BUILDER = "[r]ay::MapWorker"
SETS = ("train.cpus_per_worker=1", "train.steps=600", "train.eval_every=100")
"""Both workers fit on one host, and builders go to the others."""


def building_hosts(cluster: Cluster) -> list[int]:
    """The hosts that build episodes and train nothing."""
    training = cluster.hosts_of(WORKER)
    return [host for host in cluster.hosts_of(BUILDER) if host not in training]


@pytest.fixture
def calm(cluster: Cluster) -> Run:
    """A training whose workers build their own episodes."""
    run = cluster.begin("train", "calm-builders", *SETS, "data.builders=0")
    run.finish()
    return run


def test_a_lost_host_of_builders_changes_no_weight(cluster: Cluster, calm: Run) -> None:
    run = cluster.begin("train", "lost-builders", *SETS, "data.builders=2")
    run.reach(100)
    lost = building_hosts(cluster)[-1]
    cluster.hosts("kill", str(lost))
    run.reach(300)
    assert building_hosts(cluster), "others build what is left"
    run.finish()
    assert_same_training(run, calm)
    assert not resumed(run), "no worker was lost with them"
    cluster.hosts("start", str(lost))
    cluster.wait_for_nodes(NUM_HOSTS)
