"""What may not be read gives its reason in one sentence; a copied run folder is gone on with."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raymtl import cli, run_folder
from raymtl.config import Experiment
from raymtl.pipeline.search import open_study
from raymtl.storage import formats
from raymtl.types import UserError
from tests.conftest import experiment

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user reaches, which pytest's own are not."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@contextmanager
def another_user() -> Iterator[None]:
    """Root reads everything, so where it runs the tests, another user reads."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def made_run(output: Path, **values: object) -> tuple[Experiment, Path]:
    chosen = experiment(name="mine", output=str(output), **values)
    run = run_folder.create(chosen)
    chosen.save(run / "config.yaml")
    formats.write_json(run / "environment.json", run_folder.environment(chosen, "tune"))
    return chosen, run


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "."])
def test_resume_names_what_it_may_not_read(name: str, folder: Path) -> None:
    """It advises no second search."""
    chosen, run = made_run(folder)
    (run / name).chmod(0)
    with (
        another_user(),
        pytest.raises(UserError, match=r"^--resume: .*mine.* cannot be read \(Permission denied\)"),
    ):
        run_folder.latest(chosen, "tune")
    (run / name).chmod(0o755)
    assert run_folder.latest(chosen, "tune") == run
    _, other = made_run(folder)
    (other / "config.yaml").chmod(0)
    with another_user():
        assert run_folder.latest(chosen, "tune") == run


@pytest.mark.parametrize(
    ("closed", "command"),
    [
        (".", "trials"),
        ("trials.parquet", "trials"),
        ("config.yaml", "trials"),
        ("best", "evaluate"),
        (".", "adapt"),
    ],
)
def test_commands_say_what_they_may_not_read(
    closed: str,
    command: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen, run = made_run(folder)
    formats.write_rows(run / "trials.parquet", [{"number": 0, "state": "complete", "step": 1}])
    (run / "best").mkdir()
    chosen.save(run / "best" / "config.yaml")
    (run / closed).chmod(0)
    monkeypatch.setattr(sys, "argv", ["raymtl", command, str(run)])
    with another_user(), pytest.raises(SystemExit) as left:
        cli.main()
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert told.startswith("raymtl: ") and str(run) in told and "Permission denied" in told
    assert told.count("\n") == 1


def test_an_unreadable_journal_is_named(folder: Path) -> None:
    chosen, run = made_run(folder)
    open_study(run, chosen)
    (run / "study.journal").chmod(0)
    with another_user(), pytest.raises(PermissionError) as raised:
        open_study(run, chosen)
    assert raised.value.filename == str(run / "study.journal")


def test_a_copied_run_folder_is_gone_on_with(folder: Path) -> None:
    chosen, run = made_run(folder / "runs")
    copied = folder / "elsewhere" / "copied"
    shutil.copytree(run, copied.with_name("mine"))
    assert run_folder.latest(
        chosen.override({"output": str(folder / "elsewhere")}), "tune"
    ) == copied.with_name("mine")
    with pytest.raises(UserError, match="this very configuration"):
        run_folder.latest(chosen.override({"output": str(folder / "elsewhere"), "seed": 9}), "tune")
