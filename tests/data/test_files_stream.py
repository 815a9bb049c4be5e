"""Files larger than memory: what a step is drawn from, in how much memory, and how long training waits for it."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raymtl.data import Files
from raymtl.data.base import Arrays, Split
from raymtl.data.episodes import build_episodes, build_meta_batch
from raymtl.data.meters import READ
from raymtl.data.tables import shuffle_buffer
from raymtl.data.tables.shuffle_buffer import blocks_of
from raymtl.step.workers import Workers
from raymtl.training import loop
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import MetaBatch, UserError
from tests.conftest import experiment
from tests.data.own import PICTURE_TASKS, write_csv, write_pictures
from tests.narrowing import shared_inputs

ROWS, GROUP = 4000, 100
READ_BYTES_A_ROW = 4 + 8 + 1
"""An input in float32, a label in float64, and whether there is one."""


def numbered(folder: Path, rows: int = ROWS, **values: Any) -> Files:
    """A table whose label says the row, streamed in blocks of GROUP rows."""
    x = np.random.default_rng(0).normal(size=rows)
    path = folder / "numbered.parquet"
    if not path.exists():
        pq.write_table(
            pa.table({"x": x, "row": np.arange(rows, dtype=np.float64)}), path, row_group_size=GROUP
        )
    settings = {
        "in_memory_mb": 0.01,
        "fit_rows": 1000,
        "hold_steps": 8,
        "held_out_rows": 50,
        "queries": 16,
    }
    return Files(path=str(path), tasks={"row": {}}, **{**settings, **values}).resolve()


def rows_at(
    source: Files,
    arrays: Arrays,
    step: int,
    indices: Sequence[int] = range(4),
    split: Split = "train",
) -> list[list[int]]:
    (stack,), _ = build_episodes(source, arrays, seed=0, split=split, step=step, indices=indices)
    return [
        row.int().tolist()
        for row in torch.cat([stack.support.targets["row"], stack.query.targets["row"]], 1)
    ]


def test_only_large_files_are_streamed(tmp_path: Path) -> None:
    assert numbered(tmp_path, in_memory_mb=100).found.pool is None
    source = numbered(tmp_path)
    assert source.found.pool == 1
    assert numbered(tmp_path, in_memory_mb=0.04).found.pool == 5
    assert len(source.load()["inputs"]) < 2 * (50 + GROUP)


def test_streamed_episodes_depend_on_their_index_alone(tmp_path: Path) -> None:
    """An episode is a function of seed, step and index."""
    source = numbered(tmp_path, in_memory_mb=0.04)
    arrays = source.load()
    steps = [0, 1, 7, 30, 100, 3]
    told = {step: rows_at(source, arrays, step) for step in steps}
    again = {
        step: rows_at(numbered(tmp_path, in_memory_mb=0.04), arrays, step)
        for step in sorted(steps, reverse=True)
    }
    assert told == again
    assert told[30][2] == rows_at(source, arrays, 30, [2])[0]
    assert told[0] != told[1]


def test_training_rows_are_those_not_held_out(tmp_path: Path) -> None:
    source = numbered(tmp_path, in_memory_mb=0.04, held_out_rows=10**6)
    arrays = source.load()
    held = {
        split: set(arrays["target/row"][arrays[f"rows/{split}"]].astype(int))
        for split in ("val", "test")
    }
    drawn = {
        row for step in range(240) for episode in rows_at(source, arrays, step) for row in episode
    }
    assert not drawn & (held["val"] | held["test"]) and not held["val"] & held["test"]
    assert 0.13 < len(held["val"]) / ROWS < 0.17
    # 240 steps of 4 x 24 rows, drawn with repetition: most rows for training have come.
    assert len(drawn) > 0.95 * (ROWS - len(held["val"]) - len(held["test"]))


def sorted_by_split(folder: Path, *, in_folders: bool) -> Path:
    """Rows 0 to 999 for training, then 200 for validation, then 200 for testing: each block has
    one split.
    """
    start = 0
    tables = {}
    for split, rows in (("train", 1000), ("val", 200), ("test", 200)):
        numbers = np.arange(start, start + rows, dtype=np.float64)
        x = np.random.default_rng(start).normal(size=rows)
        tables[split] = pa.table({"x": x, "row": numbers})
        start += rows
    if in_folders:
        for split, table in tables.items():
            (folder / split).mkdir()
            pq.write_table(table, folder / split / "a.parquet", row_group_size=GROUP)
        return folder
    named = [table.append_column("split", [[name] * len(table)]) for name, table in tables.items()]
    pq.write_table(pa.concat_tables(named), folder / "a.parquet", row_group_size=GROUP)
    return folder / "a.parquet"


@pytest.mark.parametrize("in_folders", [True, False], ids=["folders", "column"])
def test_sorted_files_keep_the_splits_that_they_give(tmp_path: Path, in_folders: bool) -> None:
    path = sorted_by_split(tmp_path, in_folders=in_folders)
    settings: dict[str, Any] = {"in_memory_mb": 0.01, "held_out_rows": 10**6, "hold_steps": 1}
    source = Files(path=str(path), tasks={"row": {}}, **settings).resolve()
    assert source.is_streamed
    arrays = source.load()
    held = {
        split: arrays["target/row"][arrays[f"rows/{split}"]].tolist() for split in ("val", "test")
    }
    assert sorted(held["val"]) == list(range(1000, 1200))
    assert sorted(held["test"]) == list(range(1200, 1400))
    drawn: set[int] = set()
    refused = 0
    for step in range(100):
        try:
            drawn.update(row for rows in rows_at(source, arrays, step) for row in rows)
        except UserError as error:  # no step can draw from blocks of held-out rows alone
            refused += "rows for training in the blocks" in str(error)
    assert max(drawn) < 1000 and len(drawn) > 900
    assert (refused == 0) == in_folders


@pytest.mark.parametrize("seed, seen", [(0, "train"), (1, "train, val")])
def test_a_split_that_no_sampled_row_names_is_refused(tmp_path: Path, seed: int, seen: str) -> None:
    path = sorted_by_split(tmp_path, in_folders=False)
    settings: dict[str, Any] = {"in_memory_mb": 0.01, "held_out_rows": 10**6, "fit_rows": 300}
    source = Files(path=str(path), tasks={"row": {}}, split={"seed": seed}, **settings).resolve()
    assert source.found.given_splits == tuple(seen.split(", "))
    with pytest.raises(
        UserError,
        match=rf"data.split.column: expected 'split' to name no split but {seen}, as in the rows "
        r"that were looked at, got \w+ in another. Raise data.fit_rows",
    ):
        source.load()


def test_blocks_are_drawn_by_their_rows() -> None:
    """They are held for a while."""
    rows = np.array([100, 300, 0, 600])
    steps = [blocks_of(rows, 3, 10, seed=1, step=step) for step in range(20000)]
    counts = Counter(block for step in steps for block in step)
    assert counts[2] == 0
    assert counts[3] / counts[0] == pytest.approx(6, rel=0.15)
    for place, changes in enumerate(np.diff(np.array(steps[:400]), axis=0).T):
        at = {int(step + 1) % 10 for step in np.flatnonzero(changes)}
        assert at == {(10 - place * 10 // 3) % 10}


def test_streamed_inputs_equal_those_in_memory(tmp_path: Path) -> None:
    streamed, whole = numbered(tmp_path, fit_rows=ROWS), numbered(tmp_path, in_memory_mb=100)
    assert (streamed.found.columns[0].mean, streamed.found.columns[0].std) == pytest.approx(
        (whole.found.columns[0].mean, whole.found.columns[0].std), abs=0.05
    )
    column, arrays = streamed.found.columns[0], streamed.load()
    raw = pq.read_table(streamed.path)["x"].to_numpy()
    (stack,), _ = build_episodes(streamed, arrays, seed=0, split="train", step=5, indices=[0])
    rows = stack.query.targets["row"][0].int().numpy()
    np.testing.assert_allclose(
        shared_inputs(stack.query)[0, :, 0] * column.std + column.mean,
        raw[rows],
        rtol=1e-4,
        atol=1e-6,
    )


def test_pictures_and_csv_files_are_streamed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymtl.data.tables.folders.PICTURES_A_BLOCK", 10)
    root = write_pictures(tmp_path / "pictures")
    source = Files(
        path=str(root),
        tasks=PICTURE_TASKS,
        size=8,
        in_memory_mb=0.0035,
        channels=1,
        shots=2,
        queries=4,
    ).resolve()
    assert source.found.pool == 1
    (stack,), _ = build_episodes(
        source, source.load(), seed=0, split="train", step=0, indices=range(2)
    )
    assert (
        shared_inputs(stack.query).shape == (2, 4, 1, 8, 8)
        and shared_inputs(stack.query).dtype == torch.uint8
    )
    for part in range(4):
        x = np.random.default_rng(part).normal(size=100)
        write_csv(tmp_path / "parts" / f"{part}.csv", {"x": x.tolist(), "y": (2 * x).tolist()})
    tables = Files(
        path=str(tmp_path / "parts"), tasks={"y": {}}, in_memory_mb=0.005, fit_rows=50
    ).resolve()
    assert tables.found.pool == 1
    (stack,), _ = build_episodes(
        tables, tables.load(), seed=0, split="train", step=0, indices=range(2)
    )
    assert shared_inputs(stack.query).isfinite().all()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"episodes": "groups", "group": "row"},
            r"data.episodes: expected rows where files are larger than",
        ),
        (
            {"in_memory_mb": 0.001},
            r"numbered.parquet: expected blocks that fit twice into data.in_memory_mb",
        ),
    ],
)
def test_what_cannot_be_streamed_is_told(tmp_path: Path, values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        numbered(tmp_path, **values)


def test_data_wait_pct_measures_the_data_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only the data and the reports move."""
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0], monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr(loop, "time", clock)

    def advance(seconds: float) -> None:
        now[0] += seconds

    chosen = experiment(train__steps=4, train__eval_every=2)
    arrays = chosen.data.load()

    def slow(first_step: int) -> Iterator[tuple[int, int, MetaBatch]]:
        for batch in local_batches(chosen, arrays)(first_step):
            advance(0.05)
            yield batch

    context = TrainContext(lambda metrics: advance(0.2), lambda row: None)
    train_loop(chosen, arrays, slow, context, tmp_path)
    waited = [
        row["seconds"] * row["data_wait_pct"] / 100
        for row in pq.read_table(tmp_path / "history.parquet").to_pylist()
    ]
    assert waited == pytest.approx([0.05] * 4)


SCRIPT = """
import json, os, resource, sys, threading, time
from pathlib import Path
import raymtl.distributed.trainer as training
import ray
from raymtl.config import load

def resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6

def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

experiment = load(Path(sys.argv[1]))
ray.init(address="local", num_cpus=2, object_store_memory=80 * 1024**2, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
arrays = ray.put(experiment.data.load())
peak = {"driver": 0.0, "worker": 0.0}
done = threading.Event()
def watch():
    while not done.wait(0.1):
        peak["driver"] = max(peak["driver"], resident(os.getpid()))
        for process in Path("/proc").glob("[0-9]*"):
            try:
                # of this Ray alone: its raylet is a child of this process
                if b"ray::" in (process / "cmdline").read_bytes() and parent(parent(process.name)) == os.getpid():
                    peak["worker"] = max(peak["worker"], resident(process.name))
            except (OSError, ValueError):
                pass
threading.Thread(target=watch, daemon=True).start()
folder = Path(sys.argv[2])
folder.mkdir()
spec = training.TrainerSpec("stream/best", folder / ".ray", workers=1, cpus=1, gpus=0)
training.train(experiment, arrays, folder, spec)
done.set()
session = Path("/tmp/ray") / ray.get_runtime_context().get_session_name()
assert session.is_dir()
spilled = sum(f.stat().st_size for f in session.glob("ray_spilled_objects*/**/*") if f.is_file())
print(json.dumps({**peak, "spilled_mb": spilled / 1e6}))
ray.shutdown()
"""


@pytest.mark.slow
def test_oversized_data_trains_in_bounded_memory(tmp_path: Path) -> None:
    """Ten times the object store."""
    rng = np.random.default_rng(0)
    path = tmp_path / "large.parquet"
    names = [*(f"x{i}" for i in range(40)), "y"]
    schema = pa.schema([(name, pa.float64()) for name in names])
    writer = pq.ParquetWriter(path, schema, compression="none", use_dictionary=False)
    for _ in range(100):
        x = rng.normal(size=(24_000, 40))
        writer.write_table(pa.table([*x.T, x.sum(1)], schema=schema))
    writer.close()
    assert path.stat().st_size > 780e6
    config = tmp_path / "large.yaml"
    config.write_text(
        f"data: {{name: files, path: {path}, in_memory_mb: 60, fit_rows: 100000, held_out_rows: 2000, hold_steps: 10,"
        " queries: 64, tasks: {y: {}}}\nencoder: {name: mlp, hidden: [16]}\nlearner: {name: maml, inner_steps: 0}\n"
        "train: {steps: 400, meta_batch: 4, eval_every: 100, task_axis: vmap}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(config), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    history = pq.read_table(tmp_path / "run" / "history.parquet").to_pylist()
    assert len(history) == 400
    assert history[-1]["loss.y"] < 0.5 * history[0]["loss.y"]
    # 400 steps go through some 120 blocks of 7.9 MB, more than the file has. A worker takes about 1,050 MB without any
    # data, and the rows as float32 would be 400 more.
    assert told["driver"] < 1300 and 0 < told["worker"] < 1300 and told["spilled_mb"] == 0, told


def rows_of_worker(
    source: Files, arrays: Arrays, rank: int, size: int, steps: int, meta_batch: int = 8
) -> list[list[int]]:
    """The rows that the episodes of a worker have, of all steps."""
    rows: list[list[int]] = []
    for step in range(steps):
        (stack,) = build_meta_batch(
            source,
            arrays,
            seed=0,
            step=step,
            indices=Workers(rank, size).share(meta_batch),
            meta_batch=meta_batch,
        )
        rows += stack.query.targets["row"].int().tolist()
    return rows


def end_reader() -> None:
    """Ends the reader of this process when it has read what it was asked for."""
    for reader in shuffle_buffer._READERS.values():
        reader.thread.shutdown(wait=True)
    shuffle_buffer._READERS.clear()


@pytest.fixture
def blocks_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of each block that is read."""
    read: list[int] = []
    original = shuffle_buffer._Reader._read

    def counted(reader: Any, number: int, is_careful: bool) -> Any:
        read.append(number)
        return original(reader, number, is_careful)

    monkeypatch.setattr(shuffle_buffer._Reader, "_read", counted)
    return read


def test_reads_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, blocks_read: list[int]
) -> None:
    """Where there are as many lanes; and a training sees as many times more of the data."""
    counts: dict[tuple[int, int], int] = {}
    rows: dict[tuple[int, int], set[int]] = {}
    for lanes in (1, 4):
        source = numbered(tmp_path, rows=200_000, lanes=lanes, in_memory_mb=0.04)
        assert source.found.pool is not None
        arrays = source.load()
        for size in (1, 2, 4):
            end_reader()
            blocks_read.clear()
            drawn: list[list[int]] = []
            for rank in range(size):
                end_reader()  # as in another process
                drawn += rows_of_worker(source, arrays, rank, size, steps=32)
            end_reader()
            counts[lanes, size] = len(blocks_read)
            rows[lanes, size] = {row // GROUP for episode in drawn for row in episode}
    assert rows[4, 1] == rows[4, 2] == rows[4, 4]
    assert len(rows[4, 1]) > 3 * len(rows[1, 1])
    assert counts[1, 4] == 4 * counts[1, 1]
    for size in (2, 4):
        assert counts[4, size] == pytest.approx(counts[4, 1], rel=0.1)


@pytest.mark.parametrize("lanes", [1, 3, 4])
def test_lanes_give_the_same_episodes_on_any_number_of_workers(tmp_path: Path, lanes: int) -> None:
    source = numbered(tmp_path, lanes=lanes, in_memory_mb=0.04)
    arrays = source.load()

    def drawn(size: int) -> list[list[int]]:
        by_rank = [rows_of_worker(source, arrays, rank, size, steps=1) for rank in range(size)]
        return [row for rows in by_rank for row in rows]

    assert drawn(1) == drawn(2) == drawn(3) == drawn(8)


def test_one_lane_gives_the_episodes_of_data_without_lanes(tmp_path: Path) -> None:
    """Those of the first of several, too."""
    source, several = (
        numbered(tmp_path, lanes=lanes, in_memory_mb=0.04, shots=1) for lanes in (1, 4)
    )
    arrays = source.load()
    for step in (0, 30):
        one, other = (
            build_meta_batch(own, arrays, seed=0, step=step, indices=range(2), meta_batch=8)[0]
            for own in (source, several)
        )
        assert torch.equal(one.query.targets["row"], other.query.targets["row"])
        expected = rows_at(source, arrays, step, range(2))
        assert [rows[1:] for rows in expected] == one.query.targets["row"].int().tolist()


def test_blocks_of_a_lane_that_went_elsewhere_are_let_go(tmp_path: Path) -> None:
    source = numbered(tmp_path, lanes=4, in_memory_mb=0.04)
    arrays = source.load()
    pool = source.found.pool or 1
    for lane in range(4):
        source.window(arrays, "train", 0, 0, lane)
    (reader,) = shuffle_buffer._READERS.values()
    assert len(reader.blocks) > 2 * pool
    for step in range(1, 40):
        source.window(arrays, "train", 0, step, 2)
    assert len(reader.blocks) <= 2 * pool


def test_history_says_what_was_read(tmp_path: Path, blocks_read: list[int]) -> None:
    source = numbered(tmp_path, lanes=2, in_memory_mb=0.04, hold_steps=4)
    chosen = experiment(data=source, encoder__hidden=[4], train__steps=12, train__eval_every=6)
    arrays = source.load()
    READ.taken()
    (tmp_path / "run").mkdir()
    train_loop(
        chosen,
        arrays,
        local_batches(chosen, arrays),
        TrainContext(lambda scores: None, lambda row: None),
        tmp_path / "run",
    )
    history = pq.read_table(tmp_path / "run" / "history.parquet").to_pylist()
    megabytes = [row["read_mb"] for row in history]
    assert megabytes[0] == max(megabytes) > 0
    total = len(blocks_read) * GROUP * READ_BYTES_A_ROW
    # What was read ahead of the last steps is in no step.
    assert 0.5 * total < sum(megabytes) * 1e6 <= total + 1
