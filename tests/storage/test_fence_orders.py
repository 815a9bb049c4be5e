"""The fence in all orders of two attempts' steps: what a reader finds is true at every point, and never less."""

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raymtl.storage import atomic, fence
from raymtl.storage.fence import Attempt, Superseded, claim
from raymtl.training import checkpoint
from tests.storage.interleaved import explore, step_before

STEPS = 3


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that are the same in every run, files of a few bytes, and nothing that waits."""
    monkeypatch.setattr(
        fence, "time", SimpleNamespace(monotonic=lambda: 0.0, monotonic_ns=lambda: 0)
    )
    monkeypatch.setattr(atomic, "RETRY_S", 0.0)
    monkeypatch.setattr(atomic, "sync", lambda path: None)
    monkeypatch.setattr(checkpoint, "NUM_SAVED", 1)
    monkeypatch.setattr(checkpoint, "_write", written)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the system has such, since no order depends on how fast a disk is."""
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() else tmp_path
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder) / "run"


def written(folder: Path, snapshot: Any, optimizer: Any, progress: checkpoint.Progress) -> None:
    (folder / "state").write_text("x")
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    about = {"step": progress.step, "files": {"state": {"bytes": 1, "sha256": digest}}}
    (folder / "manifest.json").write_text(json.dumps(about))


def history(folder: Path) -> list[int]:
    path = folder / "history"
    return [int(row) for row in path.read_text().split()] if path.exists() else []


def begun(step: int) -> Callable[[Path], None]:
    """A training whose first attempt got to a step."""
    return lambda folder: train(folder, step)


def train(folder: Path, stop: int = STEPS) -> None:
    """What an attempt at a training does to its folder, in the order of `keep` and `loop`."""
    untrained: Any = None  # orders need neither parameters nor an optimizer
    attempt = claim(folder)
    chosen = checkpoint.choose(folder).folder
    done = checkpoint.step_of(chosen) if chosen else 0
    rows = [row for row in history(folder) if row <= done]
    for step in range(done + 1, stop + 1):
        rows.append(step)
        attempt.publish(
            folder / "history", lambda aside: aside.write_text(" ".join(map(str, rows)))
        )
        if step == STEPS:
            attempt.publish(folder / "model", lambda aside: aside.write_text(str(step)))  # noqa: B023
        checkpoint.save(attempt, untrained, untrained, checkpoint.Progress(step, {}, "vmap"))


def look(folder: Path, seen: dict[str, Any]) -> None:
    newest, rows = checkpoint.newest_step(folder), history(folder)
    assert newest >= seen.get("newest", 0), "the newest checkpoint is an older one"
    assert rows == list(range(1, len(rows) + 1))
    assert len(rows) >= seen.get("rows", 0), "the history shrank"
    assert len(rows) >= newest, "a checkpoint of steps that are not on record"
    assert not (seen.get("model") and not (folder / "model").exists())
    seen |= {"newest": newest, "rows": len(rows), "model": (folder / "model").exists()}


def ended(folder: Path, errors: Sequence[BaseException | None]) -> None:
    assert errors.count(None) >= 1
    assert all(isinstance(error, Superseded) for error in errors if error is not None), errors
    assert checkpoint.newest_step(folder) == len(history(folder)) == STEPS
    assert (folder / "model").read_text() == str(STEPS)
    assert len(list(folder.glob(".attempt-*"))) == 1


@pytest.mark.slow
def test_two_attempts_last_steps_in_all_orders(run: Path) -> None:
    assert explore(run, begun(STEPS - 1), [train, train], look, ended) > 500


def turns(number: int, runs: int, writers: int) -> Sequence[int]:
    """They take turns of many steps, as hosts that freeze do."""
    rng = random.Random(number)
    each = [[rng.randrange(writers)] * rng.randrange(1, 40) for _ in range(3 * writers)]
    return [writer for turn in each for writer in turn] if number < runs else []


@pytest.mark.parametrize("writers", [2, 3])
def test_several_attempts_from_the_beginning_in_many_orders(writers: int, run: Path) -> None:
    explore(run, begun(0), [train] * writers, look, ended, lambda i: turns(i, 60, writers))


def unfenced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Attempt, "publish", lambda self, path, write: atomic.publish(path, write))


def checked_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check and then a write, with a moment between them."""

    def publish(self: Attempt, path: Path, write: Callable[[Path], Any]) -> None:
        self.check()
        atomic.publish(path, write)

    monkeypatch.setattr(Attempt, "publish", publish)


@pytest.mark.parametrize("broken", [unfenced, checked_only])
def test_every_part_of_the_fence_is_needed(
    broken: Callable[[pytest.MonkeyPatch], None], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    with pytest.raises(AssertionError):
        explore(run, begun(0), [train, train], look, ended, lambda i: turns(i, 400, 2))


def note(name: str) -> Callable[[Path], None]:
    """A driver that adds two lines to the run's journal."""

    def work(folder: Path) -> None:
        path = folder / "journal"
        attempt = claim(folder)
        attempt.renew(path)
        if not path.exists():
            attempt.publish(path, lambda aside: aside.write_bytes(b""))
        for line in range(2):
            attempt.append(path, f"{name}{line}\n".encode())

    return work


def test_lines_stay_whole_in_all_orders(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None that stood there goes."""
    for name in ("_end_of_lines", "_write_all"):
        monkeypatch.setattr(atomic, name, step_before(getattr(atomic, name)))

    stood: set[str] = set()

    def look(folder: Path, seen: dict[str, Any]) -> None:
        path = folder / "journal"
        content = path.read_text() if path.exists() else ""
        assert content.endswith("\n") or not content
        seen["stood"] = seen.get("stood", frozenset()) | frozenset(content.split())
        stood.clear()
        stood.update(seen["stood"])

    def ended(folder: Path, errors: Sequence[BaseException | None]) -> None:
        lines = (folder / "journal").read_text().split()
        assert stood <= set(lines)
        for name, error in zip("ab", errors, strict=True):
            assert error is None or isinstance(error, Superseded)
            own = [line for line in lines if line[0] == name]
            assert own == [f"{name}{i}" for i in range(len(own))]
        assert any(lines[-2:] == [f"{name}0", f"{name}1"] for name in "ab")

    assert explore(run, lambda folder: None, [note("a"), note("b")], look, ended) > 50
