"""The comparison with TorchJD, at sizes that take no time: both sides compute the same, and every part prints."""

from functools import partial

import pytest
import torch
from rich.console import Console

from benchmarks import hard_sharing, weighting
from benchmarks.weighting import Timing
from tests.narrowing import present


def test_both_packages_compute_the_same_gradient() -> None:
    """PCGrad, whose random order has no say over two tasks."""
    net = hard_sharing.network("lenet", 2, batch_size=4)
    flat = weighting.our_step(net, "pcgrad")()
    for chunk, by_parts in ((None, False), (1, False), (1, True)):
        weighting.their_step(net, "pcgrad", chunk, by_parts)()
        grads = [present(parameter.grad) for parameter in (*net.shared, *net.private)]
        theirs = torch.cat([grad.flatten() for grad in grads])
        torch.testing.assert_close(flat, theirs, rtol=1e-4, atol=1e-6)


def test_ratios_are_their_time_over_ours() -> None:
    ratio = Timing([4.0, 30.0, 2.0]).ratio(Timing([2.0, 10.0, 2.0]))
    assert (ratio["low"], ratio["ratio"], ratio["high"]) == (1.0, 2.0, 3.0)


def test_variants_take_turns() -> None:
    """The first run does not count."""
    order: list[str] = []
    timed = weighting.take_turns({name: partial(order.append, name) for name in "ab"}, 2)
    assert "".join(order) == "ab" + "ab" + "ba"
    assert all(len(timing.turns_ms) == 2 for timing in timed.values())


def test_every_method_that_both_have_is_timed() -> None:
    assert {"pcgrad", "mgda", "upgrad", "graddrop", "nash_mtl"} <= set(weighting.BOTH)
    found = weighting.aggregation(3, 50, turns=2, methods=["pcgrad", "mgda"])
    assert all(row["ratio"] > 0 for row in found)


@pytest.mark.parametrize("method", ["equal", "famo"])
def test_many_tasks_train(method: str) -> None:
    assert weighting.measure("train", method, 3, steps=2) >= 0


def test_the_tables_show_what_was_found() -> None:
    spread = {"ratio": 2.0, "low": 1.0, "high": 3.0}
    theirs = {
        column: {"variant": "chunk 1", "ms": 7.0, **spread}
        for column in ("default", "best", "by_parts")
    }
    console = Console(record=True, width=200)
    for table in weighting.tables(
        {
            "aggregation": [
                {"method": "a", "ours_ms": 1.0, "theirs_ms": 2.0, **spread},
                {"method": "b", "missing": "x"},
            ],
            "gradients": [{"model": "lenet", "tasks": 2, "method": "a", "ours_ms": 1.0, **theirs}],
            "memory": [
                {
                    "model": "lenet",
                    "tasks": 2,
                    "method": "a",
                    "ours": 1,
                    "default": 2,
                    "chunk_1": 3,
                    "by_parts": 4,
                }
            ],
            "many_tasks": [{"method": "famo", "mib": 1.0, "to_equal": 1.1}],
        }
    ):
        console.print(table)
    text = console.export_text()
    assert text.count("2.00 (1.00 to 3.00)") == 4
    assert "its solver is not installed" in text
