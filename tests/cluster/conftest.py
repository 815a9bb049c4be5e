"""One cluster on hosts of its own for all tests of this folder."""

import time
from collections.abc import Iterator

import pytest

from tests.cluster.hosts import IMPATIENT, Cluster, Hosts, Run, missing


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    made = Hosts(tmp_path_factory.mktemp("hosts"))
    made.up()
    yield made
    made.down()


@pytest.fixture(scope="session")
def cluster(hosts: Hosts, request: pytest.FixtureRequest) -> Cluster:
    """Launched with `ray up`; goes with its hosts.

    Ray waits as long as it does for a user where slow tests are run too.
    """
    settings = IMPATIENT
    if any(item.get_closest_marker("slow") for item in request.session.items):
        settings = {}
    made = Cluster(hosts)
    made.configure(settings)
    made.up()
    return made


TWELVE_TRIALS = ("tune.trials=12", "tune.baselines=default", "train.steps=150")


@pytest.fixture(scope="session")
def twelve_trials(cluster: Cluster) -> tuple[Run, float]:
    """A search that nothing happened to, submitted as a job, and the seconds that it took."""
    start = time.monotonic()
    run = cluster.submit("launch", *TWELVE_TRIALS)
    return run, time.monotonic() - start
