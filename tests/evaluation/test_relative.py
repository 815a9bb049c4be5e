"""The two conventions of the relative change."""

import pytest

from raymtl.evaluation.relative import delta_m, delta_p

BASE = {"a": {"acc": (0.5, True)}, "b": {"mae": (2.0, False), "mse": (4.0, False)}}


def test_no_change_is_zero_in_both() -> None:
    assert delta_m(BASE, BASE) == delta_p(BASE, BASE) == 0


def test_by_hand() -> None:
    """+20 %, +50 % and -25 %: one mean over three metrics, the other over two tasks."""
    scores = {"a": {"acc": (0.6, True)}, "b": {"mae": (1.0, False), "mse": (5.0, False)}}
    assert delta_m(scores, BASE) == pytest.approx(-(20 + 50 - 25) / 3)
    assert delta_p(scores, BASE) == pytest.approx((20 + (50 - 25) / 2) / 2)


def test_single_metrics_make_the_deltas_opposite() -> None:
    scores = {"a": {"acc": (0.7, True)}}
    base = {"a": {"acc": (0.5, True)}}
    assert delta_m(scores, base) == -delta_p(scores, base) == pytest.approx(-40)


def test_a_rise_from_below_zero_is_an_improvement() -> None:
    scores, base = {"a": {"r2": (-1.0, True)}}, {"a": {"r2": (-2.0, True)}}
    assert delta_p(scores, base) == -delta_m(scores, base) == pytest.approx(50)
