"""The mixture: every family is what it says, and the targets are standardised over all of them."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from raymtl.data import SPLITS, Mixture
from raymtl.data.base import Split
from raymtl.data.episodes import build_episodes
from raymtl.types import Episode, UserError
from tests.narrowing import shared_inputs

BASES = {
    "sinusoid": lambda x: np.stack([np.sin(x), np.cos(x)], -1),
    "line": lambda x: np.stack([np.ones_like(x), x], -1),
    "quadratic": lambda x: np.stack([np.ones_like(x), x, x**2], -1),
}


def build(
    source: Mixture, count: int, split: Split = "train", seed: int = 0, step: int = 0
) -> tuple[Episode, list[str]]:
    (stack,), domains = build_episodes(
        source, {}, seed=seed, split=split, step=step, indices=range(count)
    )
    return stack, domains


def coefficients(episodes: Any, index: int, family: str) -> np.ndarray:
    """Least squares on the support set, in the family's basis."""
    x, y = (
        t[index].double().numpy()
        for t in (episodes.support.inputs[..., 0], episodes.support.targets["y"])
    )
    solution: np.ndarray = np.linalg.lstsq(BASES[family](x), y)[0]
    return solution


def test_episodes_are_curves_of_their_domain() -> None:
    episodes, domains = build(Mixture(), 300)
    found: dict[str, list[np.ndarray]] = {family: [] for family in BASES}
    for index, family in enumerate(domains):
        fitted = coefficients(episodes, index, family)
        x, y = (
            t[index].double().numpy()
            for t in (shared_inputs(episodes.query)[..., 0], episodes.query.targets["y"])
        )
        np.testing.assert_allclose(BASES[family](x) @ fitted, y, atol=2e-3)
        found[family].append(fitted)
    amplitude, phase = (
        np.hypot(*np.array(found["sinusoid"]).T),
        np.arctan2(*(np.array(found["sinusoid"]) * [1, -1]).T[::-1]),
    )
    lines = np.array(found["line"])
    offset, slope, bend = np.array(found["quadratic"]).T
    centre, height = -slope / (2 * bend), offset - slope**2 / (4 * bend)
    for values, low, high in (
        (amplitude, 0.1, 5),
        (phase, 0, math.pi),
        (lines, -3, 3),
        (abs(bend), 0.02, 0.15),
        (centre, -3, 3),
        (height, -3, 3),
    ):
        span = high - low
        assert low - 1e-3 * span < values.min() < low + 0.1 * span
        assert high - 0.1 * span < values.max() < high + 1e-3 * span
    assert 0.3 < (bend > 0).mean() < 0.7


def test_families_have_equal_odds() -> None:
    counts = Counter(build(Mixture(shots=1, queries=1), 1500)[1])
    assert set(counts) == set(BASES)
    assert all(abs(count - 500) < 4 * math.sqrt(1500 * 2 / 9) for count in counts.values())
    assert set(build(Mixture(families=("line", "quadratic")), 50)[1]) == {"line", "quadratic"}


@pytest.mark.parametrize(
    "families", [("line",), ("quadratic",), ("sinusoid", "quadratic"), tuple(BASES)]
)
def test_targets_are_standardised_for_the_loss(
    families: tuple[str, ...],
) -> None:
    source = Mixture(families=families, shots=1, queries=50)
    (task,) = source.make_tasks()
    y = build(source, 3000)[0].query.targets["y"].double()
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    mean = float(task.decode(zero))
    scaled = (y - mean) / (float(task.decode(one)) - mean)
    for per_curve, expected in ((scaled.mean(1), 0.0), (scaled.square().mean(1), 1.0)):
        interval = 4 * float(per_curve.std()) / math.sqrt(len(per_curve))
        assert float(per_curve.mean()) == pytest.approx(expected, abs=interval)
        assert interval < 0.15


def test_episodes_depend_on_their_index_alone() -> None:
    """An episode is a function of seed, split, step and index."""
    whole, domains = build(Mixture(), 9, step=4)
    (alone,), (domain,) = build_episodes(Mixture(), {}, seed=0, split="train", step=4, indices=[8])
    assert domain == domains[8]
    assert torch.equal(whole.support.targets["y"][8], alone.support.targets["y"][0])
    others = [
        build(Mixture(), 9, step=5)[0],
        build(Mixture(), 9, seed=1, step=4)[0],
        build(Mixture(), 9, "val", step=4)[0],
    ]
    assert all(
        not torch.equal(shared_inputs(whole.support), shared_inputs(other.support))
        for other in others
    )


def test_splits_share_no_curve_or_point() -> None:
    source = Mixture(families=("line",))
    drawn = [build(source, 200, split)[0] for split in SPLITS]
    slopes = [round(coefficients(e, i, "line")[1], 6) for e in drawn for i in range(200)]
    assert len(set(slopes)) > 595  # two of 600 may agree to the precision of the fit
    points = np.concatenate([shared_inputs(e.query).flatten().numpy() for e in drawn])
    assert len(set(points.tolist())) == points.size


def test_a_family_given_twice_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"data.families: expected every family once, got \['line', 'line'\]"
    ):
        Mixture(families=("line", "line"))
