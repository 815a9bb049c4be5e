"""The run folder on disk: names, atomic files, damaged files."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from raymtl import runs
from raymtl.types import UserError
from tests.conftest import experiment


def test_a_taken_name_gets_a_number_and_resume_finds_the_newest(tmp_path: Path) -> None:
    chosen = experiment(name="mine", output=str(tmp_path / "out"))
    made = [runs.create(chosen) for _ in range(3)]
    assert [path.name for path in made] == ["mine", "mine-2", "mine-3"]
    for path in made[:2]:
        chosen.save(path / "config.yaml")
        runs.write_json(path / "environment.json", runs.environment(chosen, "tune"))
    (made[2] / "config.yaml").write_text("oldkey: 1")
    assert runs.latest(chosen, "tune") == made[1]
    for other, command in ((chosen.override({"seed": 9}), "tune"), (chosen, "train")):
        with pytest.raises(UserError, match="this very configuration"):
            runs.latest(other, command)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output: "):
        runs.create(experiment(output=str(tmp_path / "file")))
    with pytest.raises(UserError, match="output: "):
        runs.create(experiment(output=str(tmp_path / "file" / "below")))


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        runs.existing(tmp_path / "none")
    with pytest.raises(UserError, match=r"without config\.yaml"):
        runs.existing(tmp_path)


def test_a_writer_that_dies_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    runs.write_json(path, {"a": 1})

    def dies(aside: Path) -> None:
        aside.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        runs.publish(path, dies)
    assert runs.read_json(path) == {"a": 1}


def test_rows_with_different_columns_and_none_at_all(tmp_path: Path) -> None:
    rows = [{"a": 1}, {"a": 2, "b": "x"}]
    runs.write_rows(tmp_path / "rows.parquet", rows)
    assert runs.read_rows(tmp_path / "rows.parquet") == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]
    assert runs.read_rows(tmp_path / "none.parquet") == []
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(UserError, match="expected a Parquet file"):
        runs.read_rows(tmp_path / "bad.parquet")


def test_tensors_come_back_to_the_bit(tmp_path: Path) -> None:
    params = {"a": torch.randn(3, 2), "b": torch.randn(2, 3).T, "c": torch.tensor(1.5)}
    runs.save_params(tmp_path / "p", params)
    assert all(torch.equal(runs.load_params(tmp_path / "p")[name], value) for name, value in params.items())
    with pytest.raises(UserError, match="a: expected shape"):
        runs.load_params(tmp_path / "p", {**params, "a": torch.zeros(1)})


def test_the_environment_tells_what_is_needed_to_do_it_again() -> None:
    about = json.loads(json.dumps(runs.environment(experiment(seed=7), "train")))
    assert about["seed"] == 7
    assert about["packages"]["torch"] == torch.__version__.split("+")[0]


def test_storage_that_is_full_is_waited_for(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(runs, "RETRY_S", 0.0)
    tries: list[int] = []

    def write(aside) -> None:
        aside.write_text("half")
        tries.append(1)
        if len(tries) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    runs.publish(tmp_path / "file", write)
    assert len(tries) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert capsys.readouterr().err.count("No space left on device; trying again for 300 s") == 1


def test_what_is_no_fault_of_the_storage_is_raised_at_once_and_that_which_stays_after_a_while(
    tmp_path, monkeypatch
) -> None:
    def broken(aside) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        runs.publish(tmp_path / "file", broken)

    def full(aside) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "PATIENCE_S", 0.0)
    with pytest.raises(OSError, match="No space left"):
        runs.publish(tmp_path / "file", full)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_tensors_and_tables_wait_for_a_disk_that_is_really_full(tmp_path, monkeypatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")

    def saved(aside) -> None:
        with aside.open("wb") as file:
            torch.save({"w": torch.zeros(20_000)}, file)

    try:
        filler = disk / "filler"
        writers = {
            "a.safetensors": lambda path: runs.save_params(path, {"w": torch.zeros(20_000)}),
            "b.parquet": lambda path: runs.write_rows(path, [{"x": os.urandom(60_000)}]),
            "c.pt": lambda path: runs.publish(path, saved),
        }
        for name, write in writers.items():
            filler.write_bytes(b"0" * 230_000)
            monkeypatch.setattr(runs.time, "sleep", lambda s, filler=filler: filler.unlink(missing_ok=True))
            write(disk / name)
            assert (disk / name).exists()
            (disk / name).unlink()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
