"""Storage that is full or away is waited for, and nothing is left half-written."""

import errno
import json
import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow.parquet as pq
import pytest
import torch
from optuna.storages import JournalStorage
from safetensors.torch import load_file

from raymtl.storage import atomic, formats
from raymtl.storage.optuna_journal import Journal
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from tests.conftest import axes
from tests.disks import small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted


def fill(disk: Path) -> Path:
    """Puts a file there that takes all that is left."""
    filler = disk / "filler"
    room = os.statvfs(disk)
    assert room.f_blocks * room.f_frsize <= 2**20, "the small disk is no longer mounted"
    filler.write_bytes(b"0" * room.f_bavail * room.f_bsize)
    assert os.statvfs(disk).f_bavail == 0
    return filler


@pytest.mark.parametrize(
    "fault",
    [
        "ENOSPC",
        "EDQUOT",
        "EIO",
        "ESTALE",
        "ETIMEDOUT",
        "ENOTCONN",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "EROFS",
    ],
)
def test_storage_faults_are_waited_for(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(atomic, "RETRY_S", 0.0)
    tries: list[int] = []

    def write(aside: Path) -> None:
        aside.write_text("half")
        tries.append(1)
        if len(tries) < 3:
            raise OSError(getattr(errno, fault), "what the system says")

    atomic.publish(tmp_path / "file", write)
    assert len(tries) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert caplog.text.count("what the system says; trying again for 300 s") == 1


def test_a_published_file_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has the content before the name points to it, and then the name."""
    order: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(opened: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(opened).st_mode)
        order.append("folder" if is_folder else "file")
        sync(opened)

    def renamed(*paths: Path) -> None:
        order.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    atomic.publish(tmp_path / "file", lambda aside: aside.write_text("content"))
    assert order == ["file", "rename", "folder"]


def test_only_storage_faults_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are raised at once, and those that stay after a while."""

    def broken(aside: Path) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        atomic.publish(tmp_path / "file", broken)

    def full(aside: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "PATIENCE_S", 0.0)
    with pytest.raises(OSError, match="No space left"):
        atomic.publish(tmp_path / "file", full)


def test_every_writer_waits_for_a_full_disk(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def saved(aside: Path) -> None:
        with aside.open("wb") as file:
            torch.save({"w": torch.zeros(20_000)}, file)

    writers: dict[str, Callable[[Path], None]] = {
        "a.safetensors": lambda path: formats.save_params(path, {"w": torch.zeros(20_000)}),
        "b.parquet": lambda path: formats.write_rows(path, [{"x": os.urandom(60_000)}]),
        "c.pt": lambda path: atomic.publish(path, saved),
        "d.jsonl": lambda path: formats.append_row(path, {"x": "y" * 60_000}),
    }
    for name, write in writers.items():
        filler = fill(disk)
        slept: list[float] = []

        def freed(seconds: float, filler: Any = filler, slept: Any = slept) -> None:
            slept.append(seconds)
            filler.unlink(missing_ok=True)

        monkeypatch.setattr("raymtl.storage.atomic.time.sleep", freed)
        write(disk / name)
        assert slept
        assert (disk / name).exists()
        (disk / name).unlink()


@pytest.mark.slow
def test_a_training_outlasts_a_full_disk(
    disk: Path, arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event files cannot be written either; TensorBoard would end it for that."""
    monkeypatch.setattr(atomic, "RETRY_S", 0.05)
    monkeypatch.setattr("raymtl.reporting.tensorboard.FLUSH_S", 0.05)
    chosen = axes("hard", "famo", "maml").override(
        {
            "train.steps": 24,
            "train.eval_every": 8,
            "train.task_axis": "vmap",
            "encoder.hidden": [6],
        }
    )

    def train(folder: Path, observe: Any) -> None:
        train_loop(
            chosen,
            arrays,
            local_batches(chosen, arrays),
            TrainContext(lambda scores: None, observe),
            folder,
        )

    timers: list[threading.Timer] = []

    def observe(row: Mapping[str, Any]) -> None:
        if row["step"] == 10:
            timers.append(threading.Timer(1.0, fill(disk).unlink))
            timers[0].start()

    train(tmp_path / "straight", lambda row: None)
    train(disk / "full", observe)
    timers[0].join()
    one, other = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "straight", disk / "full")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [row["step"] for row in formats.read_rows(disk / "full" / "history.parquet")] == list(
        range(1, 25)
    )
    assert shown(disk / "full") == shown(tmp_path / "straight") == list(range(1, 25))


def shown(folder: Path) -> list[int]:
    """The steps whose learning rate TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars("lr")]


def test_half_lines_are_cut_off_before_appending(tmp_path: Path) -> None:
    """And nothing else is."""
    path = tmp_path / "lines"
    path.write_bytes(b"")
    atomic.append(path, b"one\n")
    path.write_bytes(path.read_bytes() + b"x" * 10_000)
    atomic.append(path, b"two\nthree\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    path.write_bytes(b"never ended")
    atomic.append(path, b"four\n")
    assert path.read_bytes() == b"four\n"


def test_lines_without_room_are_not_begun(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = disk / "lines"
    path.write_bytes(b"one\n" * 1000)
    filler = fill(disk)
    monkeypatch.setattr(atomic, "PATIENCE_S", 0.0)
    with pytest.raises(OSError, match="No space left"):
        atomic.append(path, b"2" * 9000 + b"\n")
    assert path.read_bytes() == b"one\n" * 1000
    filler.unlink()


def test_appending_again_adds_no_line_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where lines arrived though the storage said otherwise."""
    path = tmp_path / "lines"
    path.write_bytes(b"one\n")
    monkeypatch.setattr(atomic, "RETRY_S", 0.0)
    sync, tries = os.fsync, []

    def away(opened: int) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise OSError(errno.EIO, "Input/output error")
        sync(opened)

    def stays(opened: Any, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", away)
    monkeypatch.setattr(os, "ftruncate", stays)
    atomic.append(path, b"two\n")
    assert len(tries) == 3
    assert path.read_bytes() == b"one\ntwo\n"


def test_late_unlocking_adds_no_entry_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = study(tmp_path / "study.journal")
    monkeypatch.setattr(atomic, "RETRY_S", 0.0)
    rename = os.rename
    failed: list[tuple[Any, ...]] = []

    def away(*paths: Any) -> None:
        if not failed:
            failed.append(paths)
            raise OSError(errno.ESTALE, "Stale file handle")
        rename(*paths)

    monkeypatch.setattr(os, "rename", away)
    kept.add_trial(optuna.trial.create_trial(value=1.0))
    assert failed
    assert [trial.value for trial in study(tmp_path / "study.journal").trials] == [1.0]


def test_unreadable_for_a_while_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.parquet"
    formats.write_rows(path, [{"step": 1}])
    monkeypatch.setattr(atomic, "RETRY_S", 0.0)
    read = pq.read_table
    failed: list[Any] = []

    def away(given: Any) -> Any:
        if not failed:
            failed.append(given)
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(given)

    monkeypatch.setattr(pq, "read_table", away)
    assert formats.read_rows(path) == [{"step": 1}]
    assert failed


def study(path: Path) -> optuna.Study:
    return optuna.create_study(
        storage=JournalStorage(Journal(path)), study_name="study", load_if_exists=True
    )


def test_half_written_journals_are_read_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study(path).add_trial(optuna.trial.create_trial(value=1.0))
    whole = path.read_bytes()
    study(path).add_trial(optuna.trial.create_trial(value=2.0))
    path.write_bytes(path.read_bytes()[:-7])  # the power went
    assert len(study(path).trials) == 1
    study(path).add_trial(optuna.trial.create_trial(value=3.0))
    assert [trial.value for trial in study(path).trials] == [1.0, 3.0]
    assert path.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_journals_have_one_writer_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.journal"
    append, inside, most = atomic.append, [], []

    def watched(*given: Any, **options: Any) -> None:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        append(*given, **options)
        inside.pop()

    monkeypatch.setattr(atomic, "append", watched)

    def write(journal: Journal) -> None:
        for number in range(20):
            journal.append_logs([{"number": number}])

    writers = [threading.Thread(target=write, args=(Journal(path),)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert max(most) == 1
    assert len(list(Journal(path).read_logs(0))) == 40


def test_reading_a_journal_waits_for_its_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.journal"
    journal = Journal(path)
    journal.append_logs([{"number": 1}, {"number": 2}])
    aside = path.rename(tmp_path / "aside")
    slept: list[float] = []

    def back(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            aside.rename(path)

    monkeypatch.setattr("raymtl.storage.atomic.time.sleep", back)
    assert [log["number"] for log in journal.read_logs(0)] == [1, 2]
    assert len(slept) == 2


def test_a_journal_waits_until_its_storage_is_back(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = study(disk / "study.journal")
    gone: list[str] = []

    def back(seconds: float) -> None:
        gone.append("slept")
        subprocess.run(["umount", str(disk)], check=True)  # what was mounted over it

    monkeypatch.setattr("raymtl.storage.atomic.time.sleep", back)
    for act in (
        lambda: kept.add_trial(optuna.trial.create_trial(value=1.0)),
        lambda: study(disk / "study.journal"),
    ):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)], check=True)
        act()
    assert len(gone) == 2
    assert [trial.value for trial in study(disk / "study.journal").trials] == [1.0]
