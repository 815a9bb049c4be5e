"""Intervals cover the true score as often as they say, whatever the score and whatever was sampled from the world."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from raymtl.evaluation.evaluate import difference
from raymtl.evaluation.held_out import Scored
from raymtl.evaluation.intervals import Estimator, Partition, combine
from raymtl.evaluation.scores import Tally, range_of
from raymtl.tasks import binary, classification, regression, segmentation
from raymtl.types import Batch, Task
from tests.narrowing import present

REPETITIONS = 300
Groups = Mapping[str, np.ndarray]
Sample = tuple[Tensor, Tensor, Groups]
"""Predictions [N, ...], targets [N, ...] and, by partition, the numbers of the groups [N] or [N, k]."""


def estimator(
    task: Task, metric: str, sample: Sample, whole: frozenset[str] = frozenset()
) -> Estimator:
    prediction, target, groups = sample
    alone = task._replace(metrics={metric: task.metrics[metric]})
    tally = Tally([alone], {name: int(own.max()) + 1 for name, own in groups.items()}, "cpu")
    numbers = {name: torch.from_numpy(own).reshape(len(own), -1) for name, own in groups.items()}
    batch = Batch(torch.zeros(len(target)), {task.name: target}, {})
    tally.add(Scored(None, {task.name: prediction}, batch, {task.name: numbers}))
    return tally.estimators(whole)[f"{task.name}.{metric}"]


def coverage(
    task: Task,
    metric: str,
    truth: float,
    samples: Iterator[Sample],
    whole: frozenset[str] = frozenset(),
) -> float:
    """The share of intervals that hold the truth."""
    kind = range_of(task.metrics[metric])
    inside = []
    for _ in range(REPETITIONS):
        found = estimator(task, metric, next(samples), whole).interval(kind)
        assert found["low"] is not None and found["high"] is not None
        inside.append(found["low"] <= truth <= found["high"])
    return float(np.mean(inside))


def rows(number: int) -> Groups:
    return {"row": np.arange(number) % 125 if number > 125 else np.arange(number)}


def one_hot(classes: np.ndarray, num_classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(classes), num_classes).float()


def right_or_wrong(number: int, share: float, seed: int = 0) -> Iterator[Sample]:
    rng = np.random.default_rng(seed)
    while True:
        target = rng.integers(3, size=number)
        hit = rng.random(number) < share
        yield (
            one_hot(np.where(hit, target, (target + 1) % 3), 3),
            torch.from_numpy(target),
            rows(number),
        )


def numbers(number: int, noise: float) -> Iterator[Sample]:
    rng = np.random.default_rng(1)
    while True:
        target = rng.standard_normal(number)
        prediction = target + noise * rng.standard_normal(number)
        yield torch.from_numpy(prediction)[:, None], torch.from_numpy(target), rows(number)


def yes_or_no(number: int, apart: float, share: float) -> Iterator[Sample]:
    rng = np.random.default_rng(2)
    while True:
        target = rng.random(number) < share
        target[:2] = [True, False]
        logits = rng.standard_normal(number) + apart * target
        yield (
            torch.from_numpy(logits)[:, None],
            torch.from_numpy(target.astype(np.int64)),
            rows(number),
        )


def maps(number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of 64 pixels, some of which are harder than others: classes that are predicted, and that are there."""
    right = rng.beta(6, 2, size=(number, 1)) > rng.random((number, 64))
    target = (rng.random((number, 64)) < rng.beta(1, 3, size=(number, 1))).astype(np.int64)
    return np.where(right, target, 1 - target), target


def pictures(number: int) -> Iterator[Sample]:
    rng = np.random.default_rng(3)
    while True:
        predicted, target = maps(number, rng)
        logits = one_hot(predicted, 2).permute(0, 2, 1).reshape(number, 2, 8, 8)
        yield logits, torch.from_numpy(target).reshape(number, 8, 8), rows(number)


def true_miou() -> float:
    predicted, target = maps(200_000, np.random.default_rng(4))
    both = [((predicted == c) & (target == c)).sum() for c in (0, 1)]
    either = [((predicted == c) | (target == c)).sum() for c in (0, 1)]
    return float(np.mean([b / e for b, e in zip(both, either, strict=True)]))


def patients(number: int) -> Iterator[Sample]:
    """Groups of 1 to 300 rows, in each of which the odds to be right are its own."""
    rng = np.random.default_rng(5)
    while True:
        sizes = np.clip(rng.lognormal(2.5, 1, number).astype(int), 1, 300)
        group = np.repeat(np.arange(number), sizes)
        hit = (
            rng.random(len(group)) < 1 / (1 + np.exp(-1 - 1.5 * rng.standard_normal(number)))[group]
        )
        target = rng.integers(3, size=len(group))
        yield (
            one_hot(np.where(hit, target, (target + 1) % 3), 3),
            torch.from_numpy(target),
            {"patient": group},
        )


def true_share() -> float:
    return float(
        (1 / (1 + np.exp(-1 - 1.5 * np.random.default_rng(6).standard_normal(10**6)))).mean()
    )


SIMULATIONS: dict[str, tuple[Task, str, Callable[[], float], Callable[[int], Iterator[Sample]]]] = {
    "accuracy": (classification("a", 3), "accuracy", lambda: 0.8, lambda n: right_or_wrong(n, 0.8)),
    "high accuracy": (
        classification("a", 3),
        "accuracy",
        lambda: 0.9,
        lambda n: right_or_wrong(n, 0.9),
    ),
    "r2": (regression("a", 0.0, 1.0), "r2", lambda: 1 - 0.25, lambda n: numbers(n, 0.5)),
    "mae": (
        regression("a", 0.0, 1.0),
        "mae",
        lambda: 0.5 * (2 / np.pi) ** 0.5,
        lambda n: numbers(n, 0.5),
    ),
    "rmse": (regression("a", 0.0, 1.0), "rmse", lambda: 0.5, lambda n: numbers(n, 0.5)),
    "auroc": (
        binary("a"),
        "auroc",
        lambda: float(norm.cdf(1 / 2**0.5)),
        lambda n: yes_or_no(n, 1.0, 0.4),
    ),
    "miou": (segmentation("a", 2, (8, 8)), "miou", true_miou, pictures),
}


@pytest.mark.parametrize("number", [50, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SIMULATIONS)
def test_intervals_cover_over_rows(name: str, number: int) -> None:
    task, metric, truth, samples = SIMULATIONS[name]
    assert 0.92 <= coverage(task, metric, truth(), samples(number)) <= 0.98


@pytest.mark.parametrize("number", [12, 20, 100])
def test_intervals_cover_over_groups_of_unequal_size(number: int) -> None:
    assert (
        0.92 <= coverage(classification("a", 3), "accuracy", true_share(), patients(number)) <= 0.98
    )


def test_rows_of_few_groups_are_not_independent() -> None:
    """The same rows taken for independent ones have intervals that are far too narrow."""
    prediction, target, groups = next(patients(20))
    whole = estimator(classification("a", 3), "accuracy", (prediction, target, groups)).interval(
        "unit"
    )
    alone = estimator(
        classification("a", 3), "accuracy", (prediction, target, {"row": np.arange(len(target))})
    )
    assert present(whole["ci95"]) > 2 * present(alone.interval("unit")["ci95"])


def few_shot(
    num_classes: int, num_episodes: int, ways: int = 5, queries: int = 15
) -> Iterator[Sample]:
    """Episodes of the same classes again and again, some of which are hard to tell from the others."""
    rng = np.random.default_rng(7)
    while True:
        centres = (
            0.9
            * np.exp(0.3 * rng.standard_normal((num_classes, 1)))
            * rng.standard_normal((num_classes, 8))
        )
        classes = np.stack(
            [rng.choice(num_classes, ways, replace=False) for _ in range(num_episodes)]
        )
        support = centres[classes] + rng.standard_normal((num_episodes, ways, 8))
        query = centres[classes][:, :, None] + rng.standard_normal((num_episodes, ways, queries, 8))
        nearest = ((query[:, :, :, None] - support[:, None, None]) ** 2).sum(-1).argmin(-1)
        target = np.broadcast_to(np.arange(ways)[:, None], (num_episodes, ways, queries))
        each = ways * queries
        groups = {
            "class": np.repeat(classes, each, axis=0),
            "episodes": np.repeat(np.arange(num_episodes), each),
            "examples": np.arange(num_episodes * each) % 1000,
        }
        yield one_hot(nearest.ravel(), ways), torch.from_numpy(target.ravel().copy()), groups


@pytest.mark.parametrize("num_episodes", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_intervals_cover_over_classes_of_few_shot_episodes(num_episodes: int) -> None:
    task = classification("a", 5, few_shot=True)
    worlds = few_shot(20, 1)
    truth = np.mean([estimator(task, "accuracy", next(worlds)).value for _ in range(1500)])
    found = coverage(
        task, "accuracy", float(truth), few_shot(20, num_episodes), frozenset({"class"})
    )
    assert 0.90 <= found <= 0.98


def test_more_episodes_shrink_no_interval() -> None:
    """What 74 rows support, 1,000 episodes of them do not improve."""
    rng = np.random.default_rng(8)
    task = classification("a", 2)
    target = rng.integers(2, size=74)
    hit = rng.random(74) < 0.7
    widths = []
    for num_episodes in (40, 1000):
        row = np.concatenate([rng.choice(74, 16, replace=False) for _ in range(num_episodes)])
        prediction = one_hot(np.where(hit, target, 1 - target)[row], 2)
        groups = {
            "row": row,
            "episodes": np.repeat(np.arange(num_episodes), 16),
            "examples": np.arange(len(row)) % 1000,
        }
        found = estimator(
            task, "accuracy", (prediction, torch.from_numpy(target[row]), groups)
        ).interval("unit")
        widths.append(found["ci95"])
    binomial = 1.96 * (0.7 * 0.3 / 74) ** 0.5
    assert widths[1] == pytest.approx(binomial, rel=0.25)
    assert widths[0] == pytest.approx(widths[1], rel=0.35)


def test_a_perfect_score_is_not_certain() -> None:
    target = np.arange(50) % 3
    found = estimator(
        classification("a", 3), "accuracy", (one_hot(target, 3), torch.from_numpy(target), rows(50))
    )
    interval = found.interval("unit")
    assert interval["mean"] == interval["high"] == 1 and 0.9 < present(interval["low"]) < 0.95


def test_scores_of_one_row_have_no_interval() -> None:
    target = np.zeros(40, np.int64)
    target[3] = 1
    logits = torch.randn(40, 1)
    found = estimator(binary("a"), "auroc", (logits, torch.from_numpy(target), rows(40))).interval(
        "unit"
    )
    assert found["mean"] is not None and found["ci95"] is None


def test_models_are_compared_in_pairs() -> None:
    """Their difference has the interval of the rows where they differ, and holds the truth as often as it says."""
    rng = np.random.default_rng(9)
    task, inside, narrower = classification("a", 2), [], []
    for _ in range(REPETITIONS):
        target = rng.integers(2, size=200)
        easy = rng.random(200) < 0.7
        hits = [easy | (rng.random(200) < share) for share in (0.4, 0.2)]
        guesses = [one_hot(np.where(hit, target, 1 - target), 2) for hit in hits]
        samples = [(guess, torch.from_numpy(target), {"row": np.arange(200)}) for guess in guesses]
        one, other = (estimator(task, "accuracy", sample) for sample in samples)
        found = difference(one, other)
        inside.append(present(found["low"]) <= 0.3 * 0.2 <= present(found["high"]))
        apart = (one.variance()[0] + other.variance()[0]) ** 0.5
        narrower.append(found["ci95"] < 1.96 * apart)
    assert 0.92 <= np.mean(inside) <= 0.98
    assert np.mean(narrower) > 0.95


def test_groups_of_finer_models_are_joined() -> None:
    rng = np.random.default_rng(10)
    values = rng.standard_normal(1000)

    def mean(groups: int) -> Estimator:
        number = np.arange(1000) % groups
        sums, counts = np.bincount(number, values), np.bincount(number)
        left_out = (values.sum() - sums) / (1000 - counts)
        return Estimator(float(values.mean()), {"row": Partition(left_out, counts / 1000)})

    joined = combine(lambda both: both[0] - both[1], [mean(1000), mean(250)])
    assert len(joined.partitions["row"].left_out) == 250
    np.testing.assert_allclose(joined.partitions["row"].left_out, 0, atol=2e-5)


def test_jackknife_of_means_is_standard_error() -> None:
    values = np.random.default_rng(11).standard_normal(30)
    left_out = (values.sum() - values) / 29
    variance, degrees = Estimator(
        float(values.mean()), {"row": Partition(left_out, np.full(30, 1 / 30))}
    ).variance()
    assert variance == pytest.approx(values.var(ddof=1) / 30, rel=1e-12)
    assert 1 <= degrees <= 29
