"""What is refused before Ray starts."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

import raymtl
from raymtl.types import UserError
from tests.adaptation.test_new_rows import trained
from tests.cli.test_cli import mistake


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("served") / "run", {"name": "sinusoid"})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"host": "0.0.0.0", "open": True}, "--host: expected a token where other machines"),
        ({"replicas": 0}, "replicas: .*greater than 0, got 0"),
        ({"kept_mb": -1}, "kept_mb: .*greater than 0"),
        ({"token": "short"}, "token: .*at least 8 characters"),
        ({"colour": 1}, "colour: "),
    ],
)
def test_settings_that_cannot_be(run: Path, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence), raymtl.serve(run, port=0, **values):
        pass


def test_a_port_that_is_taken(run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(UserError, match=f"--port: 127.0.0.1:{port} cannot be listened on"),
            raymtl.serve(run, port=port),
        ):
            pass


def test_without_ray_serve_the_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "raymtl.serving.service", None)
    with pytest.raises(UserError, match=r"pip install 'raymtl\[serve\]'"), raymtl.serve(run):
        pass


def test_a_folder_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = mistake(monkeypatch, capsys, "serve", str(tmp_path / "no-run"))
    assert "no-run" in said
