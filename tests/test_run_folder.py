"""The run folder on disk: names, atomic files, damaged files."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import _unix

from raymtl import run_folder
from raymtl.storage import atomic, formats
from raymtl.storage.fence import Superseded
from raymtl.types import UserError
from tests.conftest import experiment


def test_taken_names_get_a_number(tmp_path: Path) -> None:
    """Resume finds the newest."""
    chosen = experiment(name="mine", output=str(tmp_path / "out"))
    made = [run_folder.create(chosen) for _ in range(3)]
    assert [path.name for path in made] == ["mine", "mine-2", "mine-3"]
    for path in made[:2]:
        chosen.save(path / "config.yaml")
        formats.write_json(path / "environment.json", run_folder.environment(chosen, "tune"))
    (made[2] / "config.yaml").write_text("oldkey: 1")
    assert run_folder.latest(chosen, "tune") == made[1]
    for other, command in ((chosen.override({"seed": 9}), "tune"), (chosen, "train")):
        with pytest.raises(UserError, match="this very configuration"):
            run_folder.latest(other, command)


HOLD = "import sys, pathlib; from raymtl import run_folder\nwith run_folder.held(pathlib.Path(sys.argv[1])): print(); sys.stdin.read()"


def test_resume_takes_no_finished_or_held_run(
    tmp_path: Path,
) -> None:
    chosen = experiment(name="mine", output=str(tmp_path / "out"))
    made = [run_folder.create(chosen) for _ in range(3)]
    for path in made:
        chosen.save(path / "config.yaml")
        formats.write_json(path / "environment.json", run_folder.environment(chosen, "tune"))
    (made[2] / "summary.json").write_text("{}")
    assert run_folder.latest(chosen, "tune") == made[1]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(made[1])], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline()
        assert run_folder.latest(chosen, "tune") == made[0]
        with (
            pytest.raises(UserError, match="another process goes on with"),
            run_folder.held(made[1]),
        ):
            pass
        other.kill()
    assert run_folder.latest(chosen, "tune") == made[1]
    with run_folder.held(made[1]):
        pass
    for path in made:
        (path / "summary.json").write_text("{}")
    assert run_folder.latest(chosen, "tune") == made[2]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_storage_without_locks_says_so_once(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The later of two goes on."""

    def unsupported(file: int) -> bool:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(_unix, "lock_fd_nonblocking", unsupported)
    chosen = experiment(name="mine", output=str(tmp_path / "out"))
    run = run_folder.create(chosen)
    chosen.save(run / "config.yaml")
    formats.write_json(run / "environment.json", run_folder.environment(chosen, "tune"))
    assert run_folder.latest(chosen, "tune") == run
    with run_folder.held(run) as earlier, run_folder.held(run) as later:
        with pytest.raises(Superseded):
            earlier.publish(run / "summary.json", lambda aside: aside.write_text("{}"))
        later.publish(run / "summary.json", lambda aside: aside.write_text("{}"))
    assert (
        caplog.text.count("the storage has no locks. If another process is at work on this run")
        == 2
    )


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output: "):
        run_folder.create(experiment(output=str(tmp_path / "file")))
    with pytest.raises(UserError, match="output: "):
        run_folder.create(experiment(output=str(tmp_path / "file" / "below")))


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        run_folder.existing(tmp_path / "none")
    with pytest.raises(UserError, match=r"without config\.yaml"):
        run_folder.existing(tmp_path)


def test_a_writer_that_dies_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    formats.write_json(path, {"a": 1})

    def dies(aside: Path) -> None:
        aside.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        atomic.publish(path, dies)
    assert formats.read_json(path) == {"a": 1}


def test_rows_with_different_columns_and_none_at_all(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": 1}, {"a": 2, "b": "x"}]
    formats.write_rows(tmp_path / "rows.parquet", rows)
    assert formats.read_rows(tmp_path / "rows.parquet") == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]
    assert formats.read_rows(tmp_path / "none.parquet") == []
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(UserError, match="expected a Parquet file"):
        formats.read_rows(tmp_path / "bad.parquet")


def test_tensors_come_back_to_the_bit(tmp_path: Path) -> None:
    params = {"a": torch.randn(3, 2), "b": torch.randn(2, 3).T, "c": torch.tensor(1.5)}
    formats.save_params(tmp_path / "p", params)
    assert all(
        torch.equal(formats.load_params(tmp_path / "p")[name], value)
        for name, value in params.items()
    )
    with pytest.raises(UserError, match="a: expected shape"):
        formats.load_params(tmp_path / "p", {**params, "a": torch.zeros(1)})


def test_the_environment_makes_runs_reproducible() -> None:
    about = json.loads(json.dumps(run_folder.environment(experiment(seed=7), "train")))
    assert about["seed"] == 7
    assert about["packages"]["torch"] == torch.__version__.split("+")[0]
