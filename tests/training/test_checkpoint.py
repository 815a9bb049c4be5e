"""Checkpoints that can be trusted: what is damaged is passed over and said, and what was trained is not lost."""

import itertools
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed as dist

from raymtl.config import Experiment
from raymtl.data.base import Arrays
from raymtl.data.episodes import build_episodes
from raymtl.evaluation.scores import validation_scores
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import MetaGradient, meta_gradient
from raymtl.step.workers import Workers
from raymtl.storage import formats
from raymtl.storage.fence import claim
from raymtl.training import checkpoint, checkpointing, loop, stage
from raymtl.training.checkpoint import Progress
from raymtl.training.checkpointing import HALVED, CheckpointManager, StepFlags
from raymtl.training.context import TrainContext
from raymtl.training.loop import Batches, train_loop
from raymtl.training.recorder import Recorder
from raymtl.training.resume import StartingPoint
from raymtl.types import MetaBatch, UserError
from tests.conftest import axes
from tests.narrowing import checked
from tests.processes import new_process
from tests.training.runs import Stopped, run


def short(**values: Any) -> Experiment:
    plan = {
        "train.steps": 6,
        "train.eval_every": 2,
        "train.task_axis": "vmap",
        "encoder.hidden": [6],
    }
    return axes("hard", "famo", "maml").override(
        plan | {k.replace("__", "."): v for k, v in values.items()}
    )


def steps(folder: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in sorted((folder / "checkpoints").glob("step_*"))]


TIMES = ("seconds", "data_wait_pct", "communication_pct")


def same(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    rows = [[{k: v for k, v in row.items() if k not in TIMES} for row in
             formats.read_rows(folder / "history.parquet")] for folder in (one, other)]  # fmt: skip
    return all(torch.equal(first[name], second[name]) for name in first) and rows[0] == rows[1]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated state": (
        lambda folder: truncated(folder / "state.pt"),
        r"state\.pt has \d+ bytes and not \d+",
    ),
    "flipped bit": (
        lambda folder: flipped(folder / "model.safetensors"),
        "model.safetensors has another checksum",
    ),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "it has no manifest"),
    "half a manifest": (
        lambda folder: truncated(folder / "manifest.json"),
        "its manifest cannot be read",
    ),
    "lost file": (lambda folder: (folder / "state.pt").unlink(), "state.pt is missing"),
}


@pytest.fixture(scope="module")
def trainings(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the training of `short` that ended, `straight`, and `broken`, which died."""
    folder, chosen = tmp_path_factory.mktemp("trainings"), short(train__checkpoint_share=0)
    run(chosen, arrays, folder / "straight")
    with pytest.raises(Stopped):
        run(chosen, arrays, folder / "broken", die_after=5)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_passed_over(
    damage: str,
    trainings: Path,
    arrays: Arrays,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The one before gives the same weights."""
    chosen = short(train__checkpoint_share=0)
    shutil.copytree(trainings / "broken", tmp_path / "broken")
    assert steps(tmp_path / "broken") == [2, 4]
    do, says = DAMAGES[damage]
    do(tmp_path / "broken" / "checkpoints" / "step_00000004")
    run(chosen, arrays, tmp_path / "broken")
    assert same(trainings / "straight", tmp_path / "broken")
    (line,) = (tmp_path / "broken" / "resumes.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert told["from"] == "step_00000002"
    assert len(told["passed_over"]) == 1
    assert re.search(says, told["passed_over"][0])
    assert told["passed_over"][0] in caplog.text


def test_without_a_whole_checkpoint_training_restarts(
    trainings: Path, arrays: Arrays, tmp_path: Path
) -> None:
    """It ends the same."""
    chosen = short(train__checkpoint_share=0)
    shutil.copytree(trainings / "broken", tmp_path / "broken")
    for path in (tmp_path / "broken" / "checkpoints").iterdir():
        flipped(path / "state.pt")
    run(chosen, arrays, tmp_path / "broken")
    assert same(trainings / "straight", tmp_path / "broken")


def test_later_damaged_checkpoints_replace_no_whole_ones(arrays: Arrays, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(short(train__checkpoint_share=0), arrays, tmp_path, die_after=5)
    for path in (tmp_path / "checkpoints").iterdir():
        flipped(path / "state.pt")
    assert steps(tmp_path) == [2, 4]
    with pytest.raises(Stopped):
        run(short(train__eval_every=1), arrays, tmp_path, die_after=2)
    assert steps(tmp_path) == [1]
    assert checkpoint.newest_step(tmp_path) == 1


def test_leftovers_of_a_write_are_no_checkpoint(arrays: Arrays, tmp_path: Path) -> None:
    """They go with the next one."""
    chosen = short(train__checkpoint_share=0)
    with pytest.raises(Stopped):
        run(chosen, arrays, tmp_path, die_after=3)
    whole = tmp_path / "checkpoints" / "step_00000002"
    aside = tmp_path / ".attempt-0001" / "step_00000004.here.77"
    shutil.copytree(whole, aside)
    assert checkpoint.newest_step(tmp_path) == 2
    run(chosen, arrays, tmp_path)
    assert not aside.exists()


def test_a_checkpoint_brings_the_generator_back(tmp_path: Path) -> None:
    """As a module with dropout needs it; nothing else of the package draws from it."""
    algorithm = short().build()
    params = algorithm.init_params()
    optimizer = torch.optim.SGD(params.values(), lr=0.1)
    progress = Progress(1, params, "vmap")
    folder = checkpoint.save(claim(tmp_path), checkpoint.snapshot(algorithm), optimizer, progress)
    expected = torch.rand(3)
    torch.manual_seed(123)
    saved = checkpoint.read(folder)
    assert saved is not None
    checkpoint.restore(saved, algorithm, params, optimizer)
    assert torch.equal(torch.rand(3), expected)


def test_nothing_is_rescued_while_parameters_move(tmp_path: Path) -> None:
    """They are those of no whole step then."""
    chosen = short(train__checkpoint_share=0)
    algorithm = chosen.build()
    params = algorithm.init_params()
    optimizer = torch.optim.SGD(params.values(), lr=0.1)
    context = TrainContext(lambda scores: None, lambda row: None, Workers(0, 2))
    start = StartingPoint(claim(tmp_path), None, ())
    recorder = Recorder(start.attempt, 0, (), context)
    manager = CheckpointManager(chosen, start, context, recorder)
    for step in (1, 2):
        manager.emergency.before_move()
        assert not manager.emergency.write()
        progress = Progress(step, params, "vmap")
        manager.after_step(algorithm, optimizer, progress, StepFlags(False, False, False, False))
    assert steps(tmp_path) == []
    assert manager.emergency.write()
    assert steps(tmp_path) == [2]


def test_cheap_checkpoints_repeat_at_most_one_step(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a step takes as long as a checkpoint."""
    monkeypatch.setattr(
        checkpointing,
        "time",
        SimpleNamespace(
            perf_counter=itertools.count().__next__, sleep=time.sleep, monotonic=time.monotonic
        ),
    )
    chosen = short(train__eval_every=6, train__checkpoint_share=1)
    run(chosen, arrays, tmp_path / "straight")
    with pytest.raises(Stopped):
        run(chosen, arrays, tmp_path / "broken", die_after=5)
    # It died while step 5 was recorded, before that could be kept.
    assert steps(tmp_path / "broken") == [3, 4]
    assert not (tmp_path / "broken" / "history.parquet").exists()
    run(chosen, arrays, tmp_path / "broken")
    assert same(tmp_path / "straight", tmp_path / "broken")
    assert len(steps(tmp_path / "broken")) == checkpoint.NUM_SAVED


def test_leaving_machines_are_checkpointed_at_once(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "ASK_S", 0.0)
    chosen = short(train__eval_every=6, train__checkpoint_share=0)
    with pytest.raises(Stopped):
        run(chosen, arrays, tmp_path / "stays", die_after=5)
    assert steps(tmp_path / "stays") == []
    with pytest.raises(Stopped):
        run(chosen, arrays, tmp_path / "leaves", die_after=5, leaving=lambda: True)
    assert steps(tmp_path / "leaves") == [3, 4]


def shares(
    chosen: Experiment, arrays: Arrays, workers: Workers, lose: Callable[[int], None]
) -> Batches:
    """A worker's share of each step's episodes; the last worker may be lost at one of the steps, in mid-air."""

    def batches(first_step: int) -> Iterator[tuple[int, int, MetaBatch]]:
        for step in range(first_step, chosen.train.steps):
            if workers.rank == workers.size - 1:
                lose(step)
            indices = workers.share(chosen.train.meta_batch)
            built, _ = build_episodes(
                chosen.data, arrays, seed=chosen.seed, split="train", step=step, indices=indices
            )
            yield step, workers.rank, built

    return batches


RESCUED, UNSAVED = 7, 8
"""Exit statuses of a worker that was asked for what it has while it waited for another."""


def ask_in_turn(folder: Path, rank: int, write: Callable[[], bool]) -> None:
    """Asks one worker after the other, again while its parameters move, as Ray Train's controller does; then ends it."""

    def ask() -> None:
        until = time.monotonic() + 300
        before = folder / ("silent" if rank == 0 else f"rescued-{rank - 1}")
        while not before.exists() and time.monotonic() < until:
            time.sleep(0.05)
        while not write():
            if time.monotonic() > until:
                os._exit(UNSAVED)
            time.sleep(0.05)
        (folder / f"rescued-{rank}").touch()
        os._exit(RESCUED)

    threading.Thread(target=ask, daemon=True).start()


def train_on_one_of(
    rank: int,
    size: int,
    folder: Path,
    arrays: Arrays,
    plans: list[tuple[str, int | None]],
    end: str,
) -> None:
    """Trains what is planned; at the step where the last worker is lost, it ends or only falls silent."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=size
    )
    workers = Workers(rank, size)
    silent = folder / "silent"

    for name, lost_at in plans:
        chosen = short(train__eval_every=4, train__steps=8, train__checkpoint_share=0)

        def lose(step: int, lost_at: int | None = lost_at) -> None:
            if step == lost_at and end == "ends":
                os._exit(9)
            if step == lost_at:
                silent.touch()
                time.sleep(600)

        context = TrainContext(lambda scores: None, lambda row: None, workers)
        if lost_at is not None and rank < size - 1:
            context = context._replace(register_emergency_hook=partial(ask_in_turn, folder, rank))
        try:
            train_loop(
                chosen, arrays, shares(chosen, arrays, workers, lose), context, folder / name
            )
        except RuntimeError:
            if not silent.exists():
                raise
            time.sleep(600)  # another ended once it was rescued; the thread that asks ends this one
    dist.destroy_process_group()


def on_three_workers(*settings: object, last_s: float = 300) -> list[int | None]:
    """The exit status of each process; none is ended by the end of another, and the last `last_s` after them."""
    started = [new_process(train_on_one_of, rank, 3, *settings) for rank in range(3)]
    for process in started:
        process.start()
    for process in started[:2]:
        process.join(300)  # importing torch three times takes long on a busy machine
    started[2].join(last_s)
    if started[2].is_alive():
        started[2].kill()
        started[2].join()
    return [process.exitcode for process in started]


@pytest.mark.parametrize(
    ("end", "ended"),
    [
        ("ends", [1, 1, 9]),
        pytest.param("falls silent", [RESCUED, RESCUED, -9], marks=pytest.mark.slow),
    ],
)
def test_of_a_lost_worker_one_step_is_repeated(
    end: str, ended: list[int], arrays: Arrays, tmp_path: Path
) -> None:
    # Of one that was lost while it wrote that very step: it must not keep the others from it.
    (tmp_path / "broken" / "checkpoints" / ".step_00000006.elsewhere.1").mkdir(parents=True)
    last_s = 0.1 if end == "falls silent" else 300
    plans = [("straight", None), ("broken", 6)]
    assert on_three_workers(tmp_path, arrays, plans, end, last_s=last_s) == ended
    assert steps(tmp_path / "broken") == [
        4,
        6,
    ]  # with the score of step 4, and what was whole when it was lost
    assert steps(tmp_path / "straight") == [7, 8]
    shares = [
        row["communication_pct"]
        for row in formats.read_rows(tmp_path / "straight" / "history.parquet")
    ]
    assert len(shares) == 8 and all(0 < share < 100 for share in shares)
    (tmp_path / "rendezvous").unlink()
    (tmp_path / "silent").unlink(missing_ok=True)
    assert on_three_workers(tmp_path, arrays, [("broken", None)], "ends") == [0, 0, 0]
    assert same(tmp_path / "straight", tmp_path / "broken")


def test_short_memory_halves_the_episodes(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same numbers."""
    chosen = short(train__checkpoint_share=0)
    straight = run(chosen, arrays, tmp_path / "straight")
    asked: list[int] = []

    def small(*given: Any) -> MetaGradient:
        execution, step = checked(given[4], ExecutionConfig), checked(given[5], int)
        asked.append(execution.micro_batches)
        if step >= 3 and execution.micro_batches == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return meta_gradient(*given)

    monkeypatch.setattr(stage, "meta_gradient", small)
    halved = run(chosen, arrays, tmp_path / "halved")
    assert asked == [1, 1, 1, 1, 2, 2, 2, 2]  # once more from the checkpoint of step 2 on
    assert [row["step"] for row in formats.read_rows(tmp_path / "halved" / "history.parquet")] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert halved[-1]["val.score"] == pytest.approx(straight[-1]["val.score"], abs=1e-5)
    assert json.loads((tmp_path / "halved" / HALVED).read_text())["step"] == 4


def test_too_little_memory_names_the_key(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> MetaGradient:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stage, "meta_gradient", none)
    with pytest.raises(
        UserError, match=r"^train.meta_batch: at step 1 the memory did not suffice, though half"
    ):
        run(short(), arrays, tmp_path)


def test_short_memory_scores_one_episode_a_time(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = short(train__checkpoint_share=0)
    straight = run(chosen, arrays, tmp_path / "straight")

    def small(*given: Any) -> dict[str, float | None]:
        if checked(given[4], ExecutionConfig).chunk != 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return validation_scores(*given)

    monkeypatch.setattr(stage, "validation_scores", small)
    halved = run(chosen, arrays, tmp_path / "halved")
    assert [row["step"] for row in halved] == [row["step"] for row in straight]
    assert halved[-1]["val.score"] == pytest.approx(straight[-1]["val.score"], abs=1e-5)
    assert json.loads((tmp_path / "halved" / HALVED).read_text())["step"] == 2
