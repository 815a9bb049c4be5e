"""Prepared data on object storage, and storage that is full in the middle."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymtl.cli import main
from raymtl.data import Files, Prepared
from raymtl.data.prepared import plan
from raymtl.data.prepared.prepare import prepare
from raymtl.storage import atomic
from raymtl.types import UserError
from tests.data.own import columns, own_table, write_parquet
from tests.data.test_prepared import SMALL, assert_same_episodes, files_in
from tests.disks import enlarge, small_disk
from tests.object_storage import ObjectStorage, object_storage

FOLDER = "bucket/our/prepared"


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStorage]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with object_storage() as one:
        yield one


def objects(storage: ObjectStorage) -> dict[str, bytes]:
    """The files in the folder."""
    root = f"/{FOLDER}/"
    found = {path.removeprefix(root): content for path, content in storage.objects.items()}
    return {name: content for name, content in found.items() if name and not name.startswith("/")}


@pytest.mark.slow
def test_shards_on_object_storage_are_those_of_a_disk(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process reads row groups of them, never a shard, where data do not fit into memory."""
    monkeypatch.setattr(plan, "GROUP_BYTES", 1 << 15)
    rows = write_parquet(tmp_path / "own.parquet", columns(20_000, tasks=1))
    source = Files(path=str(rows), tasks={"level": {"column": "task 0.x"}}).resolve()
    prepare(source, str(tmp_path / "disk"))
    prepare(source, storage.url(FOLDER))
    assert objects(storage) == files_in(tmp_path / "disk")
    from_shards = Prepared(path=storage.url(FOLDER), in_memory_mb=0.001).resolve()
    arrays = from_shards.load()
    storage.most_read = 0
    for section in from_shards.every_example(arrays, "train"):
        section.batch(section.rows[:3])
    (shard,) = [name for name in objects(storage) if name.endswith("0.parquet")]
    assert 0 < storage.most_read < len(objects(storage)[shard]) / 10
    assert_same_episodes(from_shards, Prepared(path=str(tmp_path / "disk")).resolve())


@pytest.mark.slow
def test_full_object_storage_is_told_and_the_same_call_goes_on(
    storage: ObjectStorage, tmp_path: Path
) -> None:
    source = own_table(tmp_path)
    prepare(source, str(tmp_path / "disk"), shard_mb=SMALL)
    storage.room = 33_000  # of 57,000
    with pytest.raises(UserError, match=r"--output: s3.*expected room for shard-000002\.parquet"):
        prepare(source, storage.url(FOLDER), shard_mb=SMALL)
    assert sum(len(content) for content in objects(storage).values()) < 20_000
    storage.room = None
    storage.written.clear()
    prepare(source, storage.url(FOLDER), shard_mb=SMALL)
    assert objects(storage) == files_in(tmp_path / "disk")
    assert not [path for path in storage.written if "shard-000001" in path]


def test_a_full_disk_ends_the_command_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(atomic, "PATIENCE_S", 0.0)
    rows = write_parquet(tmp_path / "own.parquet", columns(40_000, tasks=1), row_group_size=4000)
    config = tmp_path / "own.yaml"
    data = f"{{name: files, path: {rows}, tasks: {{level: {{column: task 0.x}}}}}}"
    config.write_text(f"data: {data}\nencoder: {{name: mlp}}\n")

    def status(output: Path) -> int:
        command = ["data", "prepare", str(config), "--output", str(output), "--shard-mb", "0.2"]
        monkeypatch.setattr(sys, "argv", ["raymtl", *command])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    assert status(tmp_path / "straight") == 0
    with small_disk(tmp_path / "disk") as disk:
        capsys.readouterr()
        assert status(disk / "out") == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        assert "disk/out: expected room for" in sentence and "give the same command" in sentence
        complete = {path: path.stat().st_mtime_ns for path in disk.glob("out/shard-*.json")}
        assert complete
        enlarge(disk, "16m")
        assert status(disk / "out") == 0
        assert files_in(disk / "out") == files_in(tmp_path / "straight")
        for path, written_ns in complete.items():
            assert path.stat().st_mtime_ns == written_ns
