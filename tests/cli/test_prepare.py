"""Places that `data prepare` cannot write to: one sentence, before a cluster is asked for."""

import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml

from raymtl.cli import main
from tests.data.own import columns, write_parquet

NOWHERE = ["--address", "127.0.0.1:1"]
"""A cluster that nobody has started; whoever asks for it says so in other words."""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tables, the working directory, with `one.yaml` and `own/part/t.parquet`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERE", str(tmp_path))
    (tmp_path / "own" / "part").mkdir(parents=True)
    write_parquet(tmp_path / "own" / "part" / "t.parquet", columns(tasks=1, missing=0.0))
    return tmp_path


def status(path: str, output: str, *options: str) -> int:
    data = {"name": "files", "path": path, "tasks": {"y": {"column": "task 0.x"}}}
    config = {"data": data, "encoder": {"name": "mlp"}}
    Path("one.yaml").write_text(yaml.safe_dump(config))
    command = ["raymtl", "data", "prepare", "one.yaml", "--output", output, *options]
    with mock.patch.object(sys, "argv", command):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


@pytest.mark.parametrize(
    ("path", "output", "says"),
    [
        ("own", "", "expected a folder or a URL that the shards go to, got none"),
        ("own", "one.yaml", "expected a folder, got the file one.yaml"),
        ("own", "own/out", "expected a folder outside of data.path"),
        ("own", "own", "expected an empty folder"),
        ("own/*", "own/out", "expected a folder outside of data.path"),
        ("own/**/*.parquet", "own/deep/out", "expected a folder outside of data.path"),
        ("own/part/*.parquet", "$HERE/own/part/", "expected an empty folder"),
        ("own", "$NO_SUCH/out", "expected the environment variable NO_SUCH to be set"),
    ],
)
def test_a_wrong_output_is_told_in_a_sentence(
    path: str, output: str, says: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(path, output, *NOWHERE) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "--output: " in sentence and says in sentence


def test_what_is_said_to_train_from_is_yaml(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a folder whose name has a comma, beside files that a pattern leaves out."""
    output = "own/shards, of: mine"
    assert status("own/part/*.parquet", output) == 0
    section = capsys.readouterr().out.partition("To train from them:")[2]
    assert yaml.safe_load(section) == {"data": {"name": "prepared", "path": output}}
