"""A simulation of builders: GPUs whose episodes CPU machines build, step by step.

Every builder makes its parts in their order, each after the one before, and so far ahead of
training as the object stores have room. One process assigns all parts. A worker begins a step when
its parts have arrived, and all workers end it together. Times of building vary by chance.
`benchmarks.scaling` prints the table; `benchmarks.builders` measures the constants.
"""

from typing import NamedTuple

import numpy as np

TASKS_A_STEP = 16
"""As in raymtl/distributed/builders.py, which imports Ray."""


class Building(NamedTuple):
    """What the simulation is made of; seconds, bytes and numbers."""

    # Measured by `python -m benchmarks.builders`, on one core of a busy machine.
    decode_s: float = 0.0031
    """Decoding a JPEG of 400 x 400 and resizing it to 128 x 128."""
    augment_s: float = 0.0011
    """Cropping, mirroring and colouring a picture of 128 x 128."""
    # Assumptions.
    task_s: float = 0.004
    """What the one process that assigns parts takes for a task of a builder."""
    pictures_a_part: float = 8 * 16
    """Episodes for each GPU and step, times the pictures of an episode."""
    decoded_share: float = 1.0
    """How many pictures are decoded for each that an episode takes; fewer where blocks stay in the
    window for many steps.
    """
    step_s: float = 0.16
    """A training step on a GPU, without the wait for episodes."""
    varies: float = 0.2
    """The standard deviation of the time of building a part, as a share of its mean."""
    ahead: int = 8
    """Steps that builders may be ahead, in the object stores and the workers."""
    bytes_s: float = 1e9
    """Of the network, for each machine."""

    @property
    def part_s(self) -> float:
        """One core builds the part of a GPU in this time."""
        return self.pictures_a_part * (self.decoded_share * self.decode_s + self.augment_s)

    @property
    def part_bytes(self) -> float:
        """Of a part, which travels from the builder to the worker."""
        return self.pictures_a_part * 3 * 128 * 128


class Built(NamedTuple):
    """What a simulated training came to."""

    step_s: float
    wait: float
    """The share of the time that workers wait."""
    busy: float
    """The share of the time that builders build."""


def by_workers(constants: Building) -> Built:
    """Each worker builds its own parts with one core, while it trains."""
    seconds = max(constants.step_s, constants.part_s)
    return Built(seconds, 1 - constants.step_s / seconds, constants.part_s / seconds)


def by_builders(
    constants: Building, gpus: int, builders: int, machines: int, steps: int = 400
) -> Built:
    """Builders on CPU machines, among whom the parts of a step are divided evenly."""
    rng = np.random.default_rng(0)
    mean = constants.part_s * gpus / builders
    times = mean * (1 + constants.varies * rng.standard_normal((steps, builders))).clip(0.1)
    send_s = constants.part_bytes * gpus / (machines * constants.bytes_s)
    tasks = max(builders, min(gpus, TASKS_A_STEP))
    free, ends = np.zeros(builders), np.zeros(steps)
    assigned = now = 0.0
    for step in range(steps):
        # A builder waits for room until training has taken a step from before.
        room = 0.0
        if step >= constants.ahead:
            room = float(ends[step - constants.ahead])
        free = np.maximum(free, room) + times[step]
        assigned = max(assigned + tasks * constants.task_s, float(free.max()) + send_s)
        now = max(now, assigned) + constants.step_s
        ends[step] = now
    # Without the first half, in which training begins with empty stores.
    half = steps // 2
    seconds = float(ends[-1] - ends[half - 1]) / (steps - half)
    return Built(seconds, 1 - constants.step_s / seconds, float(times.sum()) / builders / now)


def building_table(constants: Building) -> list[dict[str, str]]:
    """Eight GPUs beside four CPU machines, with more and more builders."""
    alone = by_workers(constants)
    rows = [_row("the 8 workers", alone, alone)]
    for builders in (4, 8, 16, 32):
        found = by_builders(constants, gpus=8, builders=builders, machines=4)
        rows.append(_row(f"{builders} builders", found, alone))
    return rows


def _row(who: str, found: Built, alone: Built) -> dict[str, str]:
    busy = "-"
    if found is not alone:
        busy = f"{100 * found.busy:.0f}"
    return {
        "episodes are built by": who,
        "step, s": f"{found.step_s:.3f}",
        "times as fast": f"{alone.step_s / found.step_s:.2f}",
        "data_wait_pct": f"{abs(100 * found.wait):.0f}",
        "builder_cpu_pct": busy,
    }
