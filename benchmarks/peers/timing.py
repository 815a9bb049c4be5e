"""Times of several ways to do one thing, taken in turns in one process."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

MATRIX = 2048
"""Rows and columns of the matrices whose product gives the machine's rate."""
PRODUCT = "matrix product"


class Way(NamedTuple):
    """One way to do what a subject is about."""

    run: Callable[[], object]
    units: int = 1
    """How many tasks, steps or episodes one run does."""
    repeat: int = 1
    """How many runs are timed together, for ways too fast to be timed alone."""
    clock: Callable[[], float] | None = None
    """For ways that time themselves: runs, and returns the milliseconds of one unit."""


class Times(NamedTuple):
    """Milliseconds of one unit: the median and the quartiles over rounds, and to the base."""

    ms: float
    ms_low: float
    ms_high: float
    ratio: float
    """The way's time over the base's in the same round; above 1 the way is slower than raymtl."""
    ratio_low: float
    ratio_high: float
    gflops: float
    """Rate of a matrix product in the same rounds, in 10^9 floating-point operations a second."""


def in_turns(ways: Mapping[str, Way], base: str, rounds: int, device: str) -> dict[str, Times]:
    """The times of each way, which take turns; the first run of each is not counted.

    Another way begins in each round, so that a slow moment meets all of them alike.
    """
    timed = {**ways, PRODUCT: matrix_product(device)}
    names = list(timed)
    for way in timed.values():
        if way.clock is None:
            way.run()
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(milliseconds(timed[name], device))
    rate = 2 * MATRIX**3 / (1e6 * statistics.median(taken[PRODUCT]))
    found = {}
    for name in ways:
        ratios = [own / other for own, other in zip(taken[name], taken[base], strict=True)]
        found[name] = Times(*_quartiles(taken[name]), *_quartiles(ratios), rate)
    return found


def milliseconds(way: Way, device: str) -> float:
    """What one unit takes: time of the process or, on a GPU, between two events."""
    if way.clock is not None:
        return way.clock()
    num_units = way.repeat * way.units
    if device == "cpu":
        start = time.process_time()
        for _ in range(way.repeat):
            way.run()
        return 1000 * (time.process_time() - start) / num_units
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    for _ in range(way.repeat):
        way.run()
    ended.record()
    torch.cuda.synchronize()
    return float(begun.elapsed_time(ended)) / num_units


def matrix_product(device: str) -> Way:
    """A float32 matrix product, to which a step's operations are compared."""
    one, other = (torch.randn(MATRIX, MATRIX, device=device) for _ in range(2))
    return Way(lambda: one @ other)


def gigaflop(way: Way) -> float:
    """10^9 floating-point operations of the products and convolutions in one unit."""
    counter = FlopCounterMode(display=False)
    with counter:
        way.run()
    return float(counter.get_total_flops()) / 1e9 / way.units


def captured(way: Way) -> Way | None:
    """The way as one CUDA graph, which is launched at once; None where it cannot be captured.

    What waits for the GPU, such as reading a loss, cannot.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            way.run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            way.run()
    except RuntimeError as error:
        print(f"  no CUDA graph: {str(error).splitlines()[0]}", flush=True)
        return None
    return way._replace(run=graph.replay)


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    """The median, then the lower and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high
