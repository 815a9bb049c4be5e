"""What is said to fit, fits however it is placed; what is said to wait for ever has no place at all."""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from raymtl.cluster.capacity import Capacity, check
from tests.conftest import experiment

SEARCH = {"learner.inner_lr": {"log_uniform": [0.01, 0.1]}}


def searching(**tune: Any) -> Any:
    return experiment(**{f"tune__{key}": value for key, value in tune.items()}, search=SEARCH)


def placed(
    machines: Sequence[Mapping[str, float]],
    pieces: Sequence[Mapping[str, float]],
    rng: random.Random,
) -> bool:
    """Whether a scheduler that puts each piece on any machine that has room comes to its end."""
    left = [dict(machine) for machine in machines]
    for piece in pieces:
        able = [
            m
            for m in left
            if all(m.get(name, 0) >= amount - 1e-9 for name, amount in piece.items() if amount)
        ]
        if not able:
            return False
        chosen = rng.choice(able)
        for name, amount in piece.items():
            if amount:
                chosen[name] -= amount
    return True


def random_machines(rng: random.Random) -> list[dict[str, float]]:
    kinds = [
        {"CPU": 1.0},
        {"CPU": 4.0},
        {"CPU": 3.0, "GPU": 1.0},
        {"CPU": 8.0, "GPU": 2.0},
        {"CPU": 0.0},
    ]
    return [dict(rng.choice(kinds)) for _ in range(rng.randint(1, 5))]


@pytest.mark.parametrize("seed", range(40))
def test_a_plan_never_deadlocks_however_trials_are_placed(seed: int) -> None:
    rng = random.Random(seed)
    machines = random_machines(rng)
    chosen = searching(
        trials=50, workers_per_trial=rng.choice([1, 2, 3]), cpus_per_trial=rng.choice([0.5, 1, 2]),
        gpus_per_trial=rng.choice(["auto", 0, 0.5]),
    )  # fmt: skip
    missing = Capacity(machines).shortfalls(chosen, searching=True)
    if any(sentence.startswith("tune.cpus_per_trial: a trial takes") for sentence in missing):
        tune, gpus = chosen.tune, chosen.tune.gpus_per_trial
        if gpus == "auto":
            gpus = float(any(machine.get("GPU") for machine in machines))
        refused = [{"CPU": tune.cpus_per_trial, "GPU": gpus}] * tune.workers_per_trial
        assert not placed(machines, refused, rng)
        return
    made = Capacity(machines).plan(chosen)
    trial = [{"CPU": made.cpus, "GPU": made.gpus}] * made.workers
    assert placed(machines, trial * made.concurrency, rng)
    assert not placed(machines, trial * (made.concurrency + 1), rng)


@pytest.mark.parametrize("seed", range(40))
def test_shortfalls_are_what_no_placing_can_meet(seed: int) -> None:
    rng = random.Random(seed)
    machines = random_machines(rng)
    chosen = experiment(
        train__workers=rng.randint(1, 6), train__meta_batch=6, train__cpus_per_worker=rng.choice([1, 2]),
        train__device=rng.choice(["auto", "cpu"]), tune__cpus_per_trial=rng.choice([1, 4, 8]),
    )  # fmt: skip
    wanted = Capacity(machines).requests(chosen, searching=False)
    possible = [
        any(placed(machines, [n.bundle] * n.num_bundles, rng) for _ in range(20)) for n in wanted
    ]
    impossible = [n for n, can in zip(wanted, possible, strict=True) if not can]
    named = [
        s.partition(" expected")[0] for s in Capacity(machines).shortfalls(chosen, searching=False)
    ]
    assert named == [f"{need.key}: {need.purpose}:" for need in impossible]


def test_elastic_training_needs_room_for_min_workers() -> None:
    """And a GPU for each of them."""
    elastic = experiment(train__workers=3, train__min_workers=2)
    assert Capacity([{"CPU": 2.0}]).shortfalls(elastic, searching=False) == []
    for gpus in (1, 2):
        (training, *_) = Capacity([{"CPU": 4.0, "GPU": gpus}]).requests(elastic, searching=False)
        assert (training.num_bundles, training.bundle["GPU"]) == (2, gpus == 2)


def test_fitting_counts_pieces_by_trying_all_placings() -> None:
    machines = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 2.0}]
    for cpus, gpus in itertools.product((0.5, 1, 1.5, 2), (0, 0.5, 1)):
        piece = {"CPU": cpus, "GPU": gpus}
        count = next(
            n for n in range(20) if not placed(machines, [piece] * (n + 1), random.Random(0))
        )
        assert Capacity(machines).count_fitting(piece) == count


@pytest.mark.parametrize(
    ("changes", "machines", "searching_", "key"),
    [
        # Scoring takes tune.cpus_per_trial even where nothing is searched: no machine of the two is that large.
        (
            {"tune__cpus_per_trial": 6},
            [{"CPU": 4.0}, {"CPU": 4.0}],
            False,
            "tune.cpus_per_trial: scoring",
        ),
        # Trials take no GPU and fit on the large machine, but a baseline takes one and as many CPUs beside it.
        (
            {"tune__cpus_per_trial": 8, "tune__gpus_per_trial": 0, "search": SEARCH},
            [{"CPU": 16.0}, {"CPU": 4.0, "GPU": 1.0}],
            True,
            "tune.cpus_per_trial: a baseline",
        ),
        # Enough CPUs together, but no machine has four for one worker.
        (
            {"train__cpus_per_worker": 4, "train__workers": 2},
            [{"CPU": 3.0}] * 4,
            False,
            "train.workers: training",
        ),
        # One worker fits, which is fewer than there must be at least.
        (
            {"train__workers": 3, "train__min_workers": 2},
            [{"CPU": 1.0}],
            False,
            "train.min_workers: training: expected room for 2 of 1 CPU",
        ),
        # Ray gave all of the memory away, so that no driver of a trial with workers starts.
        (
            {"tune__workers_per_trial": 2, "search": SEARCH},
            [{"CPU": 4.0, "memory": 5e7}],
            True,
            "tune.concurrency: drivers of trials",
        ),
    ],
)
def test_waits_for_ever_are_told_before(
    changes: dict[str, Any], machines: list[dict[str, float]], searching_: bool, key: str
) -> None:
    found = Capacity(machines).shortfalls(experiment(**changes), searching=searching_)
    assert any(sentence.startswith(key) for sentence in found), found
    enough = [{"CPU": 64.0, "GPU": 8.0, "memory": 1e11}]
    assert Capacity(enough).shortfalls(experiment(**changes), searching=searching_) == []


@pytest.mark.parametrize("seed", range(20))
def test_builders_fit_where_all_workers_leave_cpus(seed: int) -> None:
    """Of an elastic training too, which may grow to all of its workers."""
    rng = random.Random(seed)
    machines = [{"CPU": float(rng.randrange(1, 5))} for _ in range(rng.randrange(1, 4))]
    capacity = Capacity(machines)
    for workers, builders in itertools.product((1, 2, 3), (1, 2, 4)):
        chosen = experiment(data__builders=builders, train__workers=workers, train__min_workers=1)
        sentence = capacity.builders_shortfall(chosen)
        assert (sentence is None) == (capacity.total("CPU") >= workers + builders)
        if sentence is not None:
            assert sentence.startswith("data.builders: expected")
            assert sentence in capacity.shortfalls(chosen, searching=False)
    assert capacity.builders_shortfall(experiment(train__workers=3)) is None


def test_doctor_counts_builders() -> None:
    chosen = experiment(data__builders=3)
    assert "builders beside it: 3 x 1 CPU" in check(chosen, Capacity([{"CPU": 4.0}])).found
    assert check(chosen, Capacity([{"CPU": 3.0}])).ok is False
