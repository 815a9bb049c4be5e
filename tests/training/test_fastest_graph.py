"""`graph: auto`: a graph is made where the steps to come repay it, and taken where it is faster."""

import pytest

from raymtl.step.traced import Tracer
from raymtl.training.fastest_graph import MARGIN, REPLAY_RUNS, GraphTimer


class Machine:
    """Takes so many seconds for a run with each graph, and `making` for the first run with one."""

    def __init__(self, seconds: dict[str, float], making: dict[str, float]) -> None:
        self.seconds, self.making = seconds, making
        self.refuses: tuple[str, ...] = ()
        self.made: list[str] = []

    def __call__(self, tracer: Tracer | None) -> float:
        if tracer is None:
            return self.seconds["none"]
        if tracer.graph not in self.made:
            self.made.append(tracer.graph)
            if tracer.graph in self.refuses:
                tracer.refusal = "a reason"
            return self.making[tracer.graph]
        return self.seconds[tracer.graph]

    def timer(self, runs: int, convolves: bool = False) -> GraphTimer:
        return GraphTimer(self, runs, lambda tracer: tracer.refusal is not None, convolves)


def machine(replay: float = 0.6, compiled: float = 0.3) -> Machine:
    """One on which a run without a graph takes 30 ms."""
    seconds = {"none": 0.03, "replay": 0.03 * replay, "compile": 0.03 * compiled}
    return Machine(seconds, {"replay": 2.0, "compile": 36.0})


def graph_of(tracer: Tracer | None) -> str:
    return "none" if tracer is None else str(tracer.graph)


@pytest.mark.parametrize(
    ("replay", "compiled", "best"),
    [(0.6, 0.3, "compile"), (0.6, 0.9, "replay"), (1.2, 0.5, "compile"), (1.2, 1.1, "none")],
)
def test_the_fastest_graph_is_chosen(replay: float, compiled: float, best: str) -> None:
    timer = machine(replay, compiled).timer(100_000)
    assert graph_of(timer.fastest(compiles=True)) == best


def test_short_trainings_make_no_graph() -> None:
    tried = machine()
    assert tried.timer(REPLAY_RUNS - 1).fastest(compiles=True) is None
    assert tried.made == []


@pytest.mark.parametrize("convolves", [False, True])
@pytest.mark.parametrize("runs", [300, 3000, 10_000, 100_000])
def test_what_is_compiled_is_repaid(runs: int, convolves: bool) -> None:
    """If it saves what is expected of it."""
    tried = machine()
    timer = tried.timer(runs, convolves)
    timer.fastest(compiles=True)
    saved = timer.gain * tried.seconds["replay"] * runs
    assert ("compile" in tried.made) == (saved >= MARGIN * tried.making["compile"])


def test_nothing_is_compiled_without_a_compiler() -> None:
    tried = machine()
    assert graph_of(tried.timer(100_000).fastest(compiles=False)) == "replay"
    assert tried.made == ["replay"]


def test_what_cannot_be_traced_is_not_compiled() -> None:
    tried = machine()
    tried.refuses = ("replay",)
    assert tried.timer(100_000).fastest(compiles=True) is None
    assert tried.made == ["replay"]


def test_a_refused_compilation_leaves_the_replay() -> None:
    tried = machine()
    tried.refuses = ("compile",)
    assert graph_of(tried.timer(100_000).fastest(compiles=True)) == "replay"
