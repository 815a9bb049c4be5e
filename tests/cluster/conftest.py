"""One cluster on hosts of its own for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.cluster.hosts import Cluster, Hosts, missing


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    made = Hosts(tmp_path_factory.mktemp("hosts"))
    made.up()
    yield made
    made.down()


@pytest.fixture(autouse=True)
def _restored(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a failed test leaves behind is not in the way of the next one."""
    yield
    if "cluster" in request.fixturenames:
        cluster: Cluster = request.getfixturevalue("cluster")
        cluster.restore()


@pytest.fixture(scope="session")
def cluster(hosts: Hosts) -> Cluster:
    """Launched with `ray up`; goes with its hosts."""
    made = Cluster(hosts)
    made.configure()
    made.up()
    return made
