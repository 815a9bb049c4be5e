"""Secrets are taken out of what is kept and shown; what is none stays."""

from pathlib import Path
from typing import Any

import fsspec
import pytest

from raymtl import run_folder
from raymtl.cli import main
from raymtl.config import load, parse
from raymtl.storage.places import absolute
from raymtl.storage.redaction import redacted
from raymtl.types import UserError
from tests.conftest import experiment

SECRET = "s3cr3t-v4lue"


@pytest.mark.parametrize(
    "text",
    [
        f"https://me:{SECRET}@example.com/a.parquet",
        f"https://{SECRET}@example.com/a.parquet",
        f"s3://AKIA:{SECRET}@bucket/a.parquet",
        f"https://b.s3.amazonaws.com/a.parquet?X-Amz-Date=1&X-Amz-Signature={SECRET}",
        f"https://b.s3.amazonaws.com/a.parquet?X-Amz-Security-Token={SECRET}&X-Amz-Date=1",
        f"https://b.s3.amazonaws.com/a.parquet?AWSAccessKeyId={SECRET}&Expires=1",
        f"https://storage.googleapis.com/b/a?X-Goog-Signature={SECRET}",
        f"https://x.blob.core.windows.net/c/a.parquet?sv=2024&sig={SECRET}",
        f"https://example.com/a.csv?access_token={SECRET}#top",
        f"s3://bucket/a?endpoint_override=x&secret_key={SECRET}",
        f"https://example.com/a.csv?key={SECRET}",
        f"data.token={SECRET}",
        f"RAY_AUTH_TOKEN={SECRET}",
        f"db.password={SECRET}",
        f"data={{name: files, api_key: {SECRET}}}",
        f'data={{"name": "files", "api_key": "{SECRET}"}}',
        f'data.token="a,{SECRET}"',
        f"cannot be read (403 for https://me:{SECRET}@example.com/a.parquet)",
    ],
)
def test_secret_is_hidden(text: str) -> None:
    shown = redacted(text)
    assert SECRET not in shown
    assert "***" in shown
    assert redacted(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "learner.inner_lr=0.05",
        "data.key=patient",
        "data.tokens=5",
        "auth.ssh_private_key: expected a file that is yours alone",
        "data.path=/data/secret/key.parquet",
        "abfs://container@account.dfs.core.windows.net/a.parquet",
        "s3://bucket/a.parquet?region=eu-central-1",
        "https://example.com:8443/a@b.csv?signal=1&monkey=2",
        "tune_configs/quickstart.yaml",
        "search.weighting.name={choice: [equal, pcgrad]}",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_the_environment_of_a_run_keeps_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        "raymtl",
        "tune",
        "mine.yaml",
        "--set",
        f"data.token={SECRET}",
        "--address",
        f"https://a:{SECRET}@b",
    ]
    given += ["--set", f"db.password=correct horse, {SECRET}"]
    monkeypatch.setattr("sys.argv", given)
    monkeypatch.setenv("SOME_PASSWORD", SECRET)
    about = str(run_folder.environment(experiment(), "tune"))
    assert SECRET not in about
    assert "mine.yaml" in about


def test_secret_urls_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before a configuration keeps them."""
    with pytest.raises(
        UserError,
        match=r"data\.path: expected the password or signature in an environment variable",
    ) as e:
        absolute(f"https://me:{SECRET}@example.com/a.parquet", "data.path")
    assert SECRET not in str(e.value)
    monkeypatch.setenv("MINE", f"https://me:{SECRET}@example.com/a.parquet")
    assert absolute("$MINE", "data.path") == "$MINE"
    monkeypatch.setenv("SIGNATURE", SECRET)
    kept = "https://example.com/a.parquet?sig=$SIGNATURE"
    assert absolute(kept, "data.path") == kept
    assert absolute("$HOME/a.parquet", "data.path") == str(Path.home() / "a.parquet")


def test_configurations_keep_variables_of_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They load again."""
    rows = "a,b\n" + "".join(f"{(7 * i % 11) / 3},{i % 3}\n" for i in range(60))
    fsspec.filesystem("memory").pipe("/kept/a.csv", rows.encode())
    monkeypatch.setenv("MINE", "memory://kept/a.csv")
    data: dict[str, Any] = {
        "name": "files",
        "path": "$MINE",
        "tasks": {"y": {"column": "b"}},
        "shots": 2,
        "queries": 2,
    }
    made = parse(experiment().model_dump(mode="json") | {"data": data}).resolve()
    made.save(tmp_path / "config.yaml")
    assert "memory://" not in (tmp_path / "config.yaml").read_text()
    assert load(tmp_path / "config.yaml") == made
    assert made.data.load()


def test_messages_of_the_command_line_hide_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["raymtl", "train", f"https://me:{SECRET}@example.com/a.yaml"])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().err
    assert SECRET not in shown
    assert "***@example.com" in shown


def test_workers_without_the_variable_load_configurations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fsspec.filesystem("memory").pipe(
        "/kept/b.csv", b"a,b\n" + b"".join(b"%d.5,%d\n" % (i % 7, i % 3) for i in range(60))
    )
    monkeypatch.setenv("MINE", "memory://kept/b.csv")
    data = {
        "name": "files",
        "path": "$MINE",
        "tasks": {"y": {"column": "b"}},
        "shots": 2,
        "queries": 2,
    }
    tree = (
        parse(experiment().model_dump(mode="json") | {"data": data})
        .resolve()
        .model_dump(mode="json")
    )
    monkeypatch.delenv("MINE")
    assert parse(tree).resolve().model_dump(mode="json") == tree
