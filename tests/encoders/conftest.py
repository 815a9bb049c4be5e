"""What several tests of encoders need."""

from collections.abc import Iterator

import pytest

from raymtl.encoders.texts import opened


@pytest.fixture
def nothing_opened() -> Iterator[None]:
    """No encoder of texts is open, as in a process that has just started."""
    opened._opened.clear()
    opened._vectors.clear()
    yield
    opened._opened.clear()
    opened._vectors.clear()
