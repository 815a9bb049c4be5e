"""What importing the package sets in the environment, and whose setting wins."""

import os
import runpy

import pytest

from raymtl import distributed


def test_a_users_own_setting_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in distributed.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "4096")
    made = runpy.run_path(str(distributed.__file__))
    expected = {**distributed.ENVIRONMENT, "MALLOC_TOP_PAD_": "4096"}
    assert made["worker_environment"]() == expected
    assert expected.items() <= os.environ.items()
