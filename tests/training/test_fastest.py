"""`task_axis: auto`: the fastest way is found on few episodes and within a share of the training."""

from typing import Any

import pytest
import torch

from raymtl.step.execution import count_episodes, stacks
from raymtl.step.workers import Workers
from raymtl.training.fastest import SHARE, Way, WayTimer, likely_way
from raymtl.types import Batch, Episode, MetaBatch

WAYS = (Way("loop"), Way("vmap"), Way("vmap", 8), Way("vmap", 4), Way("vmap", 2))


def episodes_of_zeros(number: int) -> Episode:
    batch = Batch(torch.zeros(number, 2, 1), {"y": torch.zeros(number, 2)}, {})
    return Episode(batch, batch)


class Machine:
    """Runs an episode of each way in so many seconds, and remembers what it ran."""

    def __init__(self, seconds: dict[Way, float]) -> None:
        self.seconds = seconds
        self.ran: list[tuple[Way, int]] = []

    def __call__(self, way: Way, episodes: MetaBatch) -> float:
        number = count_episodes(stacks(episodes))
        self.ran.append((way, number))
        return number * self.seconds[way]

    @property
    def spent(self) -> float:
        return sum(number * self.seconds[way] for way, number in self.ran)


def timer_of(machine: Machine, number: int = 32, steps: int = 10_000) -> WayTimer:
    return WayTimer(machine, episodes_of_zeros(number), Workers(), steps)


@pytest.mark.parametrize("best", WAYS)
@pytest.mark.parametrize("likely", [Way("loop"), Way("vmap")])
def test_the_fastest_way_is_chosen(best: Way, likely: Way) -> None:
    machine = Machine({way: 1.0 if way == best else 1.3 for way in WAYS})
    assert timer_of(machine).fastest(likely, None) == best


@pytest.mark.parametrize("lean", [Way("loop"), Way("vmap", 2), Way("vmap", 8)])
def test_of_ways_as_fast_the_leanest_is_chosen(lean: Way) -> None:
    """The one that holds the fewest episodes at once."""
    seconds = dict.fromkeys(WAYS, 1.3) | {Way("vmap"): 1.0, lean: 1.04}
    assert timer_of(Machine(seconds)).fastest(Way("loop"), None) == lean
    seconds[lean] = 1.06
    assert timer_of(Machine(seconds)).fastest(Way("loop"), None) == Way("vmap")


@pytest.mark.parametrize("steps", [1, 10, 60, 300, 1000, 10_000])
@pytest.mark.parametrize("number", [1, 8, 32])
def test_timing_takes_a_share_of_the_training(number: int, steps: int) -> None:
    """Of the time that all steps take in the way that was chosen."""
    machine = Machine({way: 1.0 + 0.1 * index for index, way in enumerate(WAYS)})
    chosen = timer_of(machine, number, steps).fastest(Way("loop"), None)
    assert machine.spent <= 1.5 * SHARE * steps * number * machine.seconds[chosen]


def test_clearly_slower_ways_run_once_on_little() -> None:
    machine = Machine(dict.fromkeys(WAYS, 50.0) | {Way("vmap"): 1.0})
    assert timer_of(machine).fastest(Way("vmap"), None) == Way("vmap")
    assert sorted(machine.ran[2:]) == sorted(
        [(Way("loop"), 1), (Way("vmap", 8), 8), (Way("vmap", 4), 4), (Way("vmap", 2), 2)]
    )


def test_a_chunk_of_the_users_stays() -> None:
    machine = Machine({Way("loop"): 2.0, Way("vmap", 3): 1.0})
    assert timer_of(machine).fastest(Way("loop"), 3) == Way("vmap", 3)
    assert {way for way, _ in machine.ran} == {Way("loop"), Way("vmap", 3)}


def test_too_short_trainings_take_the_likely_way() -> None:
    machine = Machine(dict.fromkeys(WAYS, 1.0))
    assert timer_of(machine, steps=3).fastest(Way("vmap"), None) == Way("vmap")
    assert machine.ran == []


class OneOfTwo(Workers):
    """A worker whose peer takes the times of `other`."""

    def sum(self, local: torch.Tensor) -> torch.Tensor:
        seconds, number = local.tolist()
        of_other = OTHER[0](number) if seconds else 0.0
        return torch.tensor([seconds + of_other, 2 * number], dtype=torch.float64)


OTHER: list[Any] = []


def test_all_workers_count_when_one_is_slow() -> None:
    """By the sums of their times, so that all choose the same."""
    mine = Machine({way: 1.0 if way == Way("loop") else 1.2 for way in WAYS})
    theirs = {way: 1.9 if way == Way("loop") else 1.0 for way in WAYS}
    OTHER[:] = [lambda number: number * theirs[mine.ran[-1][0]]]
    timer = WayTimer(mine, episodes_of_zeros(8), OneOfTwo(0, 2), 10_000)
    assert timer.fastest(Way("loop"), None) != Way("loop")


@pytest.mark.parametrize("way", [*WAYS, Way("rows"), Way("rows", 3)])
def test_a_saved_way_is_read_again(way: Way) -> None:
    assert Way.parsed(str(way)) == way


@pytest.mark.parametrize("text", ["None", "", "vmap x", "rows x", "columns 3"])
def test_other_texts_are_no_way(text: str) -> None:
    assert Way.parsed(text) is None


def test_convolutions_are_likely_to_loop() -> None:
    assert likely_way({"w": torch.zeros(3, 2, 3, 3)}, None) == Way("loop")
    assert likely_way({"w": torch.zeros(3, 2)}, 4) == Way("vmap", 4)
