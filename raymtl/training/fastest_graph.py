"""`train.graph: auto`: times traced graphs where the steps to come can repay what they cost."""

from collections.abc import Callable

from raymtl.step.traced import Graph, Tracer

REPLAY_RUNS = 300
"""How often a graph has to be run until tracing it has paid.

To trace takes as long as some 80 runs of what is traced, and a replay of a small network saves a
third to a half of a run.
"""
COMPILE_S, COMPILE_TRACES = 10.0, 13.0
"""To compile takes so many seconds, and so many times as long as it took to trace."""
COMPILE_GAIN, CONVOLVING_GAIN = 0.4, 0.1
"""The share of a replay's time that compiling is expected to save, without and with
convolutions."""
MARGIN = 1.5
"""How many times its cost a graph has to be expected to save before it is tried."""
NUM_RUNS = 3
CLEARLY_FASTER = 0.97
"""A graph is taken where it needs at most this share of the best time without it."""

Seconds = Callable[[Tracer | None], float]
"""Runs the same few episodes, with the graphs of a tracer or without, on all workers; returns the
mean of their seconds."""


class GraphTimer:
    """Finds the fastest of no graph, a replayed and a compiled one, the same on all workers.

    Args:
        run: runs what one graph stands for.
        runs: how often the training will run it.
        refused: whether a tracer of any worker has refused to trace.
        convolves: whether the network has convolutions.
    """

    def __init__(
        self, run: Seconds, runs: int, refused: Callable[[Tracer], bool], convolves: bool
    ) -> None:
        self.run, self.runs, self.refused = run, runs, refused
        self.gain = COMPILE_GAIN
        if convolves:
            self.gain = CONVOLVING_GAIN
        self.seconds: dict[str, float] = {}
        """The seconds of a run with each graph that was timed."""
        self.tracing = 0.0
        self.best: Tracer | None = None

    def fastest(self, compiles: bool) -> Tracer | None:
        """The graphs to run; None to run none. `compiles` says that there is a compiler."""
        if self.runs < REPLAY_RUNS:
            return None
        self._try("replay")
        if compiles and self._repays_compiling():
            self._try("compile")
        return self.best

    def _repays_compiling(self) -> bool:
        if len(self.seconds) < 2:  # what cannot be traced cannot be compiled
            return False
        cost = COMPILE_S + COMPILE_TRACES * self.tracing
        return self.gain * min(self.seconds.values()) * self.runs >= MARGIN * cost

    def _try(self, graph: Graph) -> None:
        tracer = Tracer(graph)
        first = self.run(tracer)
        if self.refused(tracer):
            return
        times: dict[str, list[float]] = {"none": [], graph: []}
        for _ in range(NUM_RUNS):
            times["none"].append(self.run(None))
            times[graph].append(self.run(tracer))
        best = min(self.seconds.values(), default=min(times["none"]))
        self.seconds.setdefault("none", min(times["none"]))
        self.seconds[graph] = min(times[graph])
        if graph == "replay":
            self.tracing = first
        if self.seconds[graph] <= CLEARLY_FASTER * best:
            self.best = tracer
