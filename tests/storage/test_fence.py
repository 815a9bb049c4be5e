"""One writer: of several attempts at a training or a run, the last alone writes, whenever the others wake."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.storages import JournalStorage

from raymtl.config import Experiment
from raymtl.storage import formats
from raymtl.storage.fence import Attempt, Superseded, claim
from raymtl.storage.optuna_journal import Journal
from raymtl.training import checkpoint
from raymtl.training.checkpointing import CheckpointManager
from raymtl.training.context import TrainContext
from raymtl.training.emergency import StepSnapshot
from raymtl.training.loop import local_batches, train_loop
from raymtl.training.recorder import Recorder
from raymtl.training.resume import start_attempt
from tests.conftest import axes

WAIT_S = 300.0


def text(content: str) -> Callable[[Path], Any]:
    return lambda aside: aside.write_text(content)


def test_the_last_attempt_alone_writes(tmp_path: Path) -> None:
    first = claim(tmp_path)
    first.publish(tmp_path / "file", text("first"))
    second = claim(tmp_path)
    second.publish(tmp_path / "file", text("second"))
    acts: tuple[Callable[[], None], ...] = (
        lambda: first.publish(tmp_path / "file", text("first again")),
        lambda: first.publish(tmp_path / "folder" / "other", text("first again")),
        lambda: first.remove(tmp_path / "file"),
        first.check,
    )
    for act in acts:
        with pytest.raises(Superseded, match="attempt 2 took the place of attempt 1"):
            act()
    assert (tmp_path / "file").read_text() == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".attempt-0002", "file"]
    second.remove(tmp_path / "file")
    assert [path.name for path in tmp_path.rglob("*")] == [".attempt-0002"]


def test_what_was_being_written_goes_with_its_attempt(tmp_path: Path) -> None:
    """The other attempt begins while the first writes aside: neither its file nor a folder of its arrives."""
    first = claim(tmp_path)

    def file(aside: Path) -> None:
        aside.write_text("half")
        claim(tmp_path)
        aside.with_name("more").write_text("of it")

    def folder(aside: Path) -> None:
        aside.mkdir()
        (aside / "part").write_text("")
        claim(tmp_path)

    with pytest.raises(Superseded):
        first.publish(tmp_path / "file", file)
    with pytest.raises(Superseded):
        claim(tmp_path).publish(tmp_path / "folder", folder)
    assert [path.name for path in tmp_path.rglob("*")] == [".attempt-0004"]


def test_superseded_folders_are_never_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each passes the check and is superseded before it writes."""
    source = tmp_path / "source"
    (source / "checkpoints").mkdir(parents=True)
    (source / "checkpoints" / "file").write_text("")
    comparisons = pytest.importorskip("raymtl.pipeline.comparisons")
    run = tmp_path / "run"
    algorithm = short().build()
    params = algorithm.init_params()
    whole = (
        checkpoint.snapshot(algorithm),
        torch.optim.SGD(params.values()),
        checkpoint.Progress(2, params, "vmap"),
    )
    writers: list[Callable[[Attempt], object]] = [
        lambda attempt: checkpoint.save(attempt, *whole),
        lambda attempt: attempt.publish(attempt.own / "word", text("")),
        lambda attempt: attempt.publish(
            run / "copy", lambda aside: comparisons._copy_files(source, aside)
        ),
        lambda attempt: attempt.publish(run / "copy", lambda aside: aside.mkdir()),
        lambda attempt: formats.write_rows(run / "rows", [{"a": 1}], attempt.publish),
        lambda attempt: formats.save_params(
            run / "tensors", {"a": torch.zeros(1)}, attempt.publish
        ),
        lambda attempt: attempt.publish(run / "config.yaml", short().save),
    ]
    for write in writers:
        attempt = claim(run)
        check = attempt.check

        def passed(check: Callable[[], None] = check, attempt: Attempt = attempt) -> None:
            check()
            claim(run)
            monkeypatch.setattr(attempt, "check", check)

        monkeypatch.setattr(attempt, "check", passed)
        with pytest.raises(Superseded):
            write(attempt)
        assert not attempt.own.exists()
    written, attempt = checkpoint._write, claim(run)

    def late(*given: Any) -> None:
        claim(run)
        written(*given)

    monkeypatch.setattr(checkpoint, "_write", late)
    with pytest.raises(Superseded):
        checkpoint.save(attempt, *whole)
    assert sorted(path.name for path in run.rglob("*")) == [".attempt-0016", "checkpoints"]


def test_superseded_lines_miss_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the file open, has found itself the last, and is about to cut half a line off, when the other begins."""
    path = tmp_path / "lines"
    path.write_bytes(b"one\n")
    first = claim(tmp_path)
    check = first.check

    def late() -> None:
        check()
        second = claim(tmp_path)
        second.renew(path)
        second.append(path, b"two\nthree\n")

    monkeypatch.setattr(first, "check", late)
    first.append(path, b"one again\n")
    monkeypatch.undo()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    with pytest.raises(Superseded):
        first.append(path, b"one again\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_the_last_driver_alone_writes_the_study(tmp_path: Path) -> None:
    def study(attempt: Attempt) -> optuna.Study:
        journal = JournalStorage(Journal(tmp_path / "study.journal", attempt))
        return optuna.create_study(storage=journal, study_name="study", load_if_exists=True)

    first = study(claim(tmp_path))
    first.add_trial(optuna.trial.create_trial(value=1.0))
    second = study(claim(tmp_path))
    with pytest.raises(Superseded):
        first.add_trial(optuna.trial.create_trial(value=2.0))
    second.add_trial(optuna.trial.create_trial(value=3.0))
    assert [trial.value for trial in study(claim(tmp_path)).trials] == [1.0, 3.0]


def test_lost_storage_is_no_other_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for."""
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    attempt = claim(folder)
    folder.rename(elsewhere)
    monkeypatch.setattr(
        "raymtl.storage.atomic.time.sleep", lambda seconds: elsewhere.rename(folder)
    )
    attempt.check_now_and_then()
    attempt.publish(folder / "file", text("there"))
    assert (folder / "file").read_text() == "there"


def test_concurrent_attempts_have_distinct_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them is the last."""
    made: list[Attempt] = []
    mkdir = Path.mkdir

    def late(self: Path, *args: Any, **options: Any) -> None:
        if self.name == ".attempt-0001" and not made:
            made.append(Attempt(tmp_path, 0))
            made[:] = [claim(tmp_path)]
        mkdir(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", late)
    attempt = claim(tmp_path)
    assert (made[0].number, attempt.number) == (1, 2)
    with pytest.raises(Superseded):
        made[0].check()


def test_later_checkpoints_go_by_who_passed_them(
    tmp_path: Path,
) -> None:
    """Only the attempt that passed one over removes it."""
    algorithm = short().build()
    params = algorithm.init_params()
    optimizer = torch.optim.SGD(params.values())

    def save(attempt: Attempt, step: int, *passed_over: str) -> list[str]:
        progress = checkpoint.Progress(step, params, "vmap")
        checkpoint.save(attempt, checkpoint.snapshot(algorithm), optimizer, progress, passed_over)
        return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())

    attempt = claim(tmp_path)
    save(attempt, 4)
    assert save(attempt, 2) == ["step_00000002", "step_00000004"]
    assert save(attempt, 3, "step_00000004") == ["step_00000002", "step_00000003"]
    old, attempt = attempt, claim(tmp_path)
    with pytest.raises(Superseded):
        save(old, 1, "step_00000003")
    assert save(attempt, 5) == ["step_00000003", "step_00000005"]


# Two attempts at a training, in threads.


class Frozen:
    """A place at which a thread stops until it is thawed, as all threads of a frozen host do."""

    def __init__(self) -> None:
        self.reached, self.thawed = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.thawed.wait(WAIT_S)


def short(**values: Any) -> Experiment:
    plan = {
        "train.steps": 8,
        "train.eval_every": 4,
        "train.task_axis": "vmap",
        "encoder.hidden": [6],
    }
    return axes("hard", "famo", "maml").override(
        plan | {k.replace("__", "."): v for k, v in values.items()}
    )


def state(folder: Path) -> dict[str, Any]:
    """All that stands in a model folder, but TensorBoard's files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if "tensorboard" not in path.parts
    }


class Old(threading.Thread):
    """An attempt that is frozen at a step, and what it ended with."""

    def __init__(self, chosen: Experiment, arrays: Any, folder: Path, step: int) -> None:
        super().__init__(daemon=True)
        self.frozen, self.rows = Frozen(), 0
        self.error: Exception | None = None
        self.arguments = chosen, arrays, folder, step

    def run(self) -> None:
        chosen, arrays, folder, step = self.arguments

        def observe(row: Any) -> None:
            self.rows += 1
            if row["step"] == step:
                self.frozen()

        try:
            train_loop(
                chosen, arrays, local_batches(chosen, arrays), TrainContext(lambda scores: None, observe), folder
            )  # fmt: skip
        except Exception as error:
            self.error = error


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4, 8])
@pytest.mark.parametrize("ended", [False, True], ids=["the new one runs", "the new one has ended"])
def test_waking_attempts_write_nothing(step: int, ended: bool, arrays: Any, tmp_path: Path) -> None:
    """By the clock a checkpoint is due when it wakes; or its record, the model and a score are next."""
    chosen = short(train__checkpoint_share=1.0)
    straight = tmp_path / "straight"
    train_loop(
        chosen,
        arrays,
        local_batches(chosen, arrays),
        TrainContext(lambda _: None, lambda _: None),
        straight,
    )
    folder = tmp_path / "run"
    old = Old(chosen, arrays, folder, step)
    old.start()
    assert old.frozen.reached.wait(WAIT_S)
    before: list[dict[str, Any]] = []

    def wake() -> None:
        before.append(state(folder))
        old.frozen.thawed.set()
        old.join(WAIT_S)

    def observe(row: Any) -> None:
        if not ended and not before:
            wake()
            assert state(folder) == before[0]

    train_loop(
        chosen, arrays, local_batches(chosen, arrays), TrainContext(lambda _: None, observe), folder
    )
    if ended:
        wake()
        assert state(folder) == before[0]
    assert not old.is_alive()
    assert isinstance(old.error, Superseded)
    one, other = (formats.load_params(each / "model.safetensors") for each in (straight, folder))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [row["step"] for row in formats.read_rows(folder / "history.parquet")] == list(
        range(1, 9)
    )
    assert checkpoint.newest_step(folder) == 8


def test_a_worker_that_wakes_rescues_nothing(arrays: Any, tmp_path: Path) -> None:
    """All that it knows is that the others are gone; its newest whole step is an old one."""
    chosen = short(train__checkpoint_share=0)
    algorithm = chosen.build()
    params = algorithm.init_params()
    context = TrainContext(lambda _: None, lambda _: None)
    start = start_attempt(tmp_path, context)
    recorder = Recorder(start.attempt, 0, (), context)
    manager = CheckpointManager(chosen, start, context, recorder)
    optimizer = torch.optim.SGD(params.values())
    progress = checkpoint.Progress(2, params, "vmap")
    manager.emergency.take(StepSnapshot(checkpoint.snapshot(algorithm), optimizer, progress))
    train_loop(chosen, arrays, local_batches(chosen, arrays), context, tmp_path)
    before = state(tmp_path)
    assert manager.emergency.write()
    assert state(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["all of it", "a file of it"])
def test_vanished_checkpoints_are_chosen_anew(
    gone: str, arrays: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = short(train__checkpoint_share=0, train__steps=12)
    context = TrainContext(lambda _: None, lambda _: None)
    straight, folder = tmp_path / "straight", tmp_path / "run"
    train_loop(chosen, arrays, local_batches(chosen, arrays), context, straight)

    def observe(row: Any) -> None:
        if row["step"] == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_loop(
            chosen,
            arrays,
            local_batches(chosen, arrays),
            context._replace(log_step=observe),
            folder,
        )
    choose = checkpoint.choose
    vanished: list[str] = []

    def chosen_and_gone(model: Path) -> checkpoint.Choice:
        found = choose(model)
        if not vanished:
            assert found.folder is not None
            vanished.append(found.folder.name)
            aside = tmp_path / "gone"
            (found.folder if gone == "all of it" else found.folder / "state.pt").rename(aside)
        return found

    monkeypatch.setattr(checkpoint, "choose", chosen_and_gone)
    train_loop(chosen, arrays, local_batches(chosen, arrays), context, folder)
    assert vanished == ["step_00000008"]
    assert '"from": "step_00000004"' in (folder / "resumes.jsonl").read_text()
    one, other = (formats.load_params(each / "model.safetensors") for each in (straight, folder))
    assert all(torch.equal(one[name], other[name]) for name in one)
