"""When builders are asked for, without Ray running."""

import math
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from raymtl.distributed import feed as feed_module
from raymtl.distributed import waiting
from raymtl.distributed.builders import ACCELERATOR_LABEL, Parts, labels_without_gpus
from raymtl.distributed.feed import Feed, FeedSettings
from raymtl.distributed.streaming import StepEpisodes
from raymtl.distributed.waiting import WaitClock, Waited, explain, num_builders, shared_by
from raymtl.pipeline import pipeline
from raymtl.step.workers import Workers
from raymtl.storage import fence
from tests.conftest import experiment
from tests.processes import run_on

CPU = torch.device("cpu")


@pytest.mark.parametrize("share", [0.06, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("workers", [1, 4])
def test_builders_are_faster_than_the_workers_or_not_asked_for(share: float, workers: int) -> None:
    for free in range(200):
        builders = num_builders(Waited(share, 60), workers, free)
        assert builders == 0 or workers < builders <= free
        assert (builders == 0) == (free <= workers)
    if share < 1:
        # A worker builds all the time, so that builders make shares at the pace of steps that wait
        # for nothing.
        assert (num_builders(Waited(share, 60), workers, 1000)) * (1 - share) >= workers


def test_notes_name_the_way_and_the_key(tmp_path: Path) -> None:
    fence.claim(tmp_path)
    assert waiting.read(tmp_path) is None
    for builders, way in ((3, "built by 3 builders"), (0, "got 1")):
        note = explain(Waited(0.31, 60), builders, 2, 1)
        assert way in str(note) and "31 %" in str(note) and str(note).endswith("(data.builders)")
        waiting.save(tmp_path, note, builders, 100)
        assert waiting.read(tmp_path) == note


@pytest.mark.parametrize(("builders", "number"), [(2, 1), (0, 0), ("auto", 0)])
def test_a_search_says_that_its_trials_build_their_own(builders: Any, number: int) -> None:
    chosen = experiment().override({"data.builders": builders})
    notes = pipeline._about_builders(chosen)
    assert len(notes) == number
    assert all(str(note).endswith("(data.builders)") for note in notes)


def look(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    clock = WaitClock(Workers(rank, 2), CPU)
    clock.since -= 100
    clock.waited_s = 10.0 * rank
    waited = clock.look()
    assert math.isclose(waited.share, 0.05, rel_tol=0.2)
    assert math.isclose(waited.seconds, 100, rel_tol=0.2)
    torch.save(torch.tensor(waited), f"{folder}/{rank}.pt")


def test_all_workers_see_the_same_wait(tmp_path: Path) -> None:
    run_on(2, look, str(tmp_path))
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(one, other)


def node(cpus: float, gpus: float = 0, kind: str | None = None, alive: bool = True) -> Any:
    labels = {ACCELERATOR_LABEL: kind} if kind else {}
    return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}, "Labels": labels}


@pytest.mark.parametrize(
    ("nodes", "selector"),
    [
        ([node(8)], None),
        ([node(8, 1, "H100"), node(4)], "!in(H100)"),
        ([node(8, 1, "H100"), node(8, 4, "A100"), node(2)], "!in(A100,H100)"),
        ([node(8, 1, "H100", alive=False), node(8)], None),
        ([node(8, 1), node(8)], None),
    ],
)
def test_machines_without_gpus_are_selected_by_labels(
    nodes: list[Any], selector: str | None
) -> None:
    expected = {ACCELERATOR_LABEL: selector} if selector else {}
    assert labels_without_gpus(nodes) == expected


@pytest.mark.parametrize(
    ("workers", "pools"),
    [(1, 1), (3, 1), (40, 1), (4, 4), (4, 2), (12, 3), (1, 5), (2, 6), (512, 64)],
)
def test_workers_get_whole_shares_and_pools_read_no_lane_twice(workers: int, pools: int) -> None:
    """Ray Data takes a block of each pool in turn, and gives one to each worker in turn."""
    parts = Parts(5, 8, workers, pools)
    of_pools = [list(parts.ids(pool)) for pool in range(pools)]
    taken = [row for turn in zip(*of_pools, strict=True) for row in turn]
    own: dict[int, set[int]] = {}
    for step in range(5, 8):
        for rank in range(workers):
            of_worker = [part for at, part in taken[rank::workers] if at == step]
            share = of_worker[0] // parts.each_share
            assert of_worker == [share * parts.each_share + n for n in range(parts.each_share)]
            own.setdefault(rank, set()).add(share)
    assert sorted(own.values(), key=min) == [{share} for share in range(workers)]
    for pool, ids in enumerate(of_pools):
        made = sorted({part for _, part in ids})
        width = parts.each_step // pools
        assert made == list(range(made[0], made[0] + width)) and made[0] % width == 0, pool


@pytest.mark.parametrize("workers", [1, 2, 4, 6])
@pytest.mark.parametrize("lanes", [1, 4, 12, 30])
def test_builders_that_share_lanes_read_each_once(workers: int, lanes: int) -> None:
    possible = shared_by(workers, lanes)
    assert possible[0] == 1
    for number in possible:
        parts = Parts(0, 1, workers, number)
        borders = {lane * parts.each_step / lanes for lane in range(lanes)}
        for pool in range(number):
            first = min(part for _, part in parts.ids(pool))
            assert first in borders, "a pool begins where a lane begins"


def test_builders_of_streamed_files_are_limited_by_lanes() -> None:
    long = Waited(0.5, 60)
    assert num_builders(long, 2, 100, lanes=8) == 8
    assert num_builders(long, 2, 7, lanes=8) == 4
    assert num_builders(long, 2, 100, lanes=2) == 0
    note = str(explain(long, 0, 2, 100, lanes=2))
    assert "such as 4 lanes, got 2" in note and note.endswith("(data.lanes)")
    assert str(explain(long, 0, 2, 1, lanes=8)).endswith("got 1 (data.builders)")


class FakeClock:
    """A clock that only the episodes and the steps move."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class FakeFeed(Feed):
    """A feed whose episodes come from nowhere, those of the workers after a delay."""

    delay_s = 0.002
    clock: FakeClock

    def _built_here(self, first_step: int) -> Generator[StepEpisodes, None, None]:
        for step in range(first_step, self.settings.experiment.train.steps):
            self.clock.now += self.delay_s
            yield step, 0, ()

    def _built_elsewhere(self, first_step: int, num_builders: int) -> Iterator[StepEpisodes]:
        for step in range(first_step, self.settings.experiment.train.steps):
            yield step, num_builders, ()


@pytest.mark.parametrize(
    ("free", "step_s", "switches"), [(3, 0.0, True), (1, 0.0, False), (3, 0.06, False)]
)
def test_auto_takes_builders_once_where_workers_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, step_s: float, switches: bool
) -> None:
    """Each step comes once, whoever builds it; and a run that begins later looks anew."""
    monkeypatch.setattr(waiting, "LOOK_S", 0.0)
    monkeypatch.setattr(waiting, "LOOK_STEPS", 4)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": free})
    clock = FakeClock()
    monkeypatch.setattr(feed_module, "time", clock)
    monkeypatch.setattr(waiting, "time", clock)
    fence.claim(tmp_path)
    chosen = experiment(train__steps=20)
    feed = FakeFeed(FeedSettings(chosen, {}, None, tmp_path), "auto", Workers(), CPU)
    feed.clock = clock
    taken = []
    for batch in feed(2):
        taken.append(batch)
        clock.now += step_s
    assert [step for step, _, _ in taken] == list(range(2, 20))
    assert [builders for _, builders, _ in taken] == [0, 0, *([3] * 16 if switches else [0] * 16)]
    note = waiting.read(tmp_path)
    if switches:
        assert "built by 3 builders" in str(note)
    elif step_s:
        assert note is None
    else:
        assert "got 1" in str(note)
