"""A simulation of runs on 8, 64 and 512 GPUs, from constants that are measured or given.

    python -m benchmarks.scaling               # the tables of docs/scaling.md
    python -m benchmarks.scaling --measure     # first measures this machine's constants (minutes)
    python -m benchmarks.scaling --set parameters=1e8 --set tasks=40 --set inter_bytes_s=5e9

Training is a formula: compute, a ring's all-reduce, a checkpoint. The search is simulated event by
event: trials take slots, and one driver serves asks, reports and ends in turn. Neither has been run
on so many machines.
"""

import argparse
import heapq
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.building import Building, building_table

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from raymtl.config import Experiment

GPUS = (8, 64, 512)


class Constants(NamedTuple):
    """What the simulation is made of; seconds, bytes and numbers."""

    # Measured by --measure, on one core.
    ask_s: float = 0.014
    """Asking Optuna for a trial, with none before it."""
    ask_s_a_trial: float = 1.5e-5
    """... and for each trial before it."""
    report_s: float = 0.001
    """The driver's part of a report: two lines in the journal."""
    end_s: float = 0.001
    """The driver's part of a trial's end, without trials.parquet."""
    journal_bytes_a_report: float = 460
    journal_bytes_a_trial: float = 3500
    history_s_a_row: float = 2.5e-6
    """Writing a row of history.parquet, of which all are written each time."""
    table_s_a_row: float = 1.5e-5
    """... of trials.parquet, collecting it from the study included."""
    checkpoint_bytes_a_parameter: float = 12.0
    """Weights and Adam's two averages in float32; 13 with the 20,000 parameters of the quickstart's
    model.
    """
    # Seen on Ray, with small models on two cores.
    trial_overhead_s: float = 0.55
    """Between two trials on a reused process."""
    nested_overhead_s: float = 13.0
    """Before the first report of a trial with Train workers of its own: 9 to 17 s were seen."""
    # Of the training: yours, if you measure them (`seconds` in history.parquet).
    parameters: float = 11.2e6
    """A ResNet-18."""
    tasks: float = 3
    episode_s: float = 0.02
    """One episode's forward and backward pass on one GPU; an assumption."""
    episodes_a_gpu: float = 8
    steps: float = 100_000
    eval_every: float = 100
    # Of the machines: assumptions, about those of 2024.
    gpus_a_machine: float = 8
    intra_bytes_s: float = 200e9
    """Between GPUs of a machine, each."""
    inter_bytes_s: float = 10e9
    """Between machines, for each GPU."""
    latency_s: float = 20e-6
    storage_bytes_s: float = 1e9
    """Of the shared storage, for one writer."""
    # Of the data that is streamed.
    data_bytes: float = 100e12
    block_bytes: float = 64e6
    window_blocks: float = 16
    hold_steps: float = 100


class Step(NamedTuple):
    """One outer step, with the episodes growing with the GPUs."""

    compute_s: float
    reduce_s: float
    checkpoint_s: float
    jacobian_bytes: float
    """On each GPU; 0 for a weighting of losses."""

    @property
    def seconds(self) -> float:
        return self.compute_s + self.reduce_s + self.checkpoint_s


def link(constants: Constants, gpus: int) -> float:
    """Bytes a second that each GPU can send: within a machine, or else between machines."""
    if gpus <= constants.gpus_a_machine:
        return constants.intra_bytes_s
    return constants.inter_bytes_s


def reduce_s(constants: Constants, gpus: int, scattered: float, gathered: float) -> float:
    """A ring's reduce-scatter of so many bytes and all-gather of so many, with the latency of a
    tree.
    """
    if gpus == 1:
        return 0.0
    micro_batches = (gpus - 1) / gpus * (scattered + gathered) / link(constants, gpus)
    return micro_batches + 2 * math.ceil(math.log2(gpus)) * constants.latency_s


def step(constants: Constants, gpus: int, *, gradients: bool) -> Step:
    """`gradients` is whether the weighting needs every task's gradient: one backward pass and one
    row of it a task.
    """
    flat = 4 * constants.parameters
    if gradients:
        rows = constants.tasks
    else:
        rows = 1
    # The backward pass takes about twice the forward pass.
    micro_batches = (1 + 2 * rows) / 3
    compute = constants.episodes_a_gpu * constants.episode_s * micro_batches
    kept = constants.checkpoint_bytes_a_parameter * constants.parameters / constants.storage_bytes_s
    if gradients:
        jacobian = flat * rows * (1 + 1 / gpus)
    else:
        jacobian = 0.0
    return Step(
        compute, reduce_s(constants, gpus, flat * rows, flat), kept / constants.eval_every, jacobian
    )


class Searched(NamedTuple):
    """What a search came to."""

    seconds: float
    driver_busy: float
    """The share of the time that the driver had something to do."""
    slots_busy: float
    """The share of the slots' time that trials ran in."""


def ask_s(constants: Constants, asked: int) -> float:
    """Of the trial with so many before it."""
    return constants.ask_s + constants.ask_s_a_trial * asked


def reports_of(begins: float, trial_s: float, reports: int) -> Iterator[tuple[float, str]]:
    """When a trial that begins then reports, at even distances; the last one is its end."""
    for report in range(1, reports + 1):
        yield begins + trial_s * report / reports, "end" if report == reports else "report"


def search(
    constants: Constants, trials: int, slots: int, trial_s: float, reports: int, overhead_s: float
) -> Searched:
    """Simulates a search: every event waits for the driver, which takes them in the order of their
    coming.

    A slot asks for a trial; has it when the driver has answered; starts after `overhead_s`; reports
    at even distances, without waiting for the driver; and asks again when the driver has taken note
    of its end.
    """
    events: list[tuple[float, int, str, int]] = [
        (0.0, slot, "ask", slot) for slot in range(min(slots, trials))
    ]
    heapq.heapify(events)
    order = len(events)
    free = busy = last = 0.0
    asked = ended = 0
    while events:
        now, _, kind, slot = heapq.heappop(events)
        start = max(now, free)
        if kind == "ask":
            if asked == trials:
                continue
            cost = ask_s(constants, asked)
            asked += 1
            for at, sort in reports_of(start + cost + overhead_s, trial_s, reports):
                heapq.heappush(events, (at, order, sort, slot))
                order += 1
        elif kind == "report":
            cost = constants.report_s
        else:
            cost = constants.report_s + constants.end_s
            ended += 1
            heapq.heappush(events, (start + cost, order, "ask", slot))
            order += 1
        free = start + cost
        busy += cost
        last = max(last, free)
    assert ended == trials
    return Searched(last, busy / last, trials * trial_s / (slots * last))


def written_s(rows_a_write: float, writes: float, s_a_row: float) -> float:
    """Seconds that a table took which grows by so many rows and is written whole each time."""
    return s_a_row * rows_a_write * writes * (writes + 1) / 2


def seconds_a_row(path: Path, make_rows: Callable[[], list[dict[str, Any]]]) -> float:
    """CPU seconds that making and writing a table take, for each of its rows."""
    from raymtl.storage import formats

    began = time.process_time()
    rows = make_rows()
    formats.write_rows(path, rows)
    return (time.process_time() - began) / len(rows)


def checkpoint_bytes_a_parameter(experiment: "Experiment", folder: Path) -> float:
    """The size of a checkpoint after one step of Adam, for each parameter."""
    import torch

    from raymtl.storage import fence
    from raymtl.training import checkpoint

    algorithm = experiment.build()
    params = algorithm.init_params()
    optimizer = torch.optim.Adam(params.values())
    for value in params.values():
        value.grad = torch.ones_like(value)
    optimizer.step()
    plain = {name: value.detach() for name, value in params.items()}
    progress = checkpoint.Progress(1, plain, "vmap")
    checkpoint.save(fence.claim(folder), checkpoint.snapshot(algorithm), optimizer, progress)
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return num_bytes / sum(value.numel() for value in params.values())


SEARCHED: dict[str, Any] = {
    "learner.inner_lr": {"log_uniform": [0.001, 0.5]},
    "train.lr": {"log_uniform": [3e-4, 3e-2]},
    "learner.inner_steps": {"int": [1, 5]},
    "weighting.weights": {"simplex": ["left", "right", "sum"]},
}
REPORTED = (
    "val.score",
    "val.loss",
    "val.left.accuracy",
    "val.right.accuracy",
    "val.sum.r2",
    "val.sum.mae",
)


class TimedSearch:
    """A search whose trials train nothing, so that its own work can be timed."""

    def __init__(self, experiment: "Experiment", run: Path, reports: int) -> None:
        import numpy as np

        from raymtl.pipeline.search import Search

        self.search, self.reports = Search(experiment, run), reports
        self.journal = run / "study.journal"
        self.rng = np.random.default_rng(0)

    def trial_s(self, name: str) -> tuple[float, float, float]:
        """CPU seconds of a suggestion, of a report, and of the last report with the end."""
        clock = [time.process_time()]
        self.search.suggest(name)
        clock.append(time.process_time())
        for number in range(1, self.reports + 1):
            scores = dict.fromkeys(REPORTED, float(self.rng.random()))
            result = {**scores, "step": 100 * number, "num_parameters": 1000, "seconds": 1.0}
            if number < self.reports:
                self.search.on_trial_result(name, result)
        clock.append(time.process_time())
        self.search.write_from = math.inf  # the table is measured apart
        self.search.on_trial_complete(name, result)
        clock.append(time.process_time())
        return clock[1] - clock[0], (clock[2] - clock[1]) / (self.reports - 1), clock[3] - clock[2]

    def report_bytes(self) -> int:
        """By which a report lengthens the journal."""
        self.search.suggest("first")
        before = self.journal.stat().st_size
        scores = dict.fromkeys(REPORTED, 0.123456789)
        result = {**scores, "step": 1, "num_parameters": 1000, "seconds": 1.0}
        self.search.on_trial_result("first", result)
        return self.journal.stat().st_size - before

    def trial_bytes(self, report_bytes: int) -> int:
        """By which a trial lengthens the journal, apart from its reports."""
        before = self.journal.stat().st_size
        self.trial_s("last")
        return self.journal.stat().st_size - before - self.reports * report_bytes

    def fill(self, size: int, like: "Sequence[FrozenTrial]") -> None:
        """Adds trials that resemble these until the study has `size`."""
        from optuna.trial import create_trial

        study = self.search.study
        while len(study.get_trials(deepcopy=False)) < size:
            chosen = like[int(self.rng.integers(len(like)))]
            study.add_trial(
                create_trial(
                    params={key: self.near(chosen, key) for key in chosen.params},
                    distributions=chosen.distributions,
                    user_attrs=chosen.user_attrs,
                    values=[float(self.rng.random())],
                )
            )

    def near(self, trial: "FrozenTrial", key: str) -> float:
        """A value at most a fifth away from the trial's."""
        from optuna.distributions import FloatDistribution, IntDistribution

        domain, value = trial.distributions[key], trial.params[key]
        assert isinstance(domain, FloatDistribution | IntDistribution)
        moved = min(max(value * self.rng.uniform(0.8, 1.2), domain.low), domain.high)
        if isinstance(domain, IntDistribution):
            return int(moved)
        return float(moved)


def measured(sizes: Sequence[int] = (100, 1000, 3000), reports: int = 10) -> Constants:
    """Measures what this machine can tell without GPUs and without Ray running; CPU seconds."""
    import numpy as np

    from raymtl.config import Experiment
    from raymtl.pipeline.search import trial_rows

    experiment = Experiment().override({"tune.trials": 10**6, "train.steps": 100 * reports})
    tree = experiment.model_dump(mode="json")
    experiment = experiment.model_validate(tree | {"search": SEARCHED})
    ask_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        timed = TimedSearch(experiment, run, reports)
        report_bytes = timed.report_bytes()
        for number in range(8):
            timed.trial_s(f"warm-{number}")
        like = [trial for trial in timed.search.study.get_trials() if trial.state.is_finished()]
        for size in sizes:
            timed.fill(size, like)
            times = np.median([timed.trial_s(f"{size}-{number}") for number in range(5)], axis=0)
            ask, report_s, end_s = times.tolist()
            ask_s.append(ask)
        slope, base = np.polyfit(sizes, ask_s, 1)
        return Constants(
            ask_s=max(float(base), 0.0),
            ask_s_a_trial=float(slope),
            report_s=report_s,
            end_s=max(end_s - report_s, 0.0),
            journal_bytes_a_report=report_bytes,
            journal_bytes_a_trial=timed.trial_bytes(report_bytes),
            history_s_a_row=history_row_s(run / "history.parquet"),
            table_s_a_row=seconds_a_row(
                run / "trials.parquet", lambda: trial_rows(timed.search.study)
            ),
            checkpoint_bytes_a_parameter=checkpoint_bytes_a_parameter(
                experiment, run / "checkpoint"
            ),
        )


def history_row_s(path: Path) -> float:
    """CPU seconds for a row of a history of 20,000 steps."""
    numbers = ("lr", "grad_norm", "seconds", *(f"x{number}" for number in range(10)))
    steps = [{"step": number, **dict.fromkeys(numbers, 0.5)} for number in range(20_000)]
    return seconds_a_row(path, lambda: steps)


Table = list[dict[str, str]]


def tables(constants: Constants) -> dict[str, Table]:
    """Heading -> rows, as text."""
    return {
        "Training": _training(constants),
        "A search of 10,000 trials": _searches(constants),
        "Streamed data": _data(constants),
        "Episodes built by builders": building_table(Building()),
        "Costs that grow with a run": _growth(constants),
    }


def _training(constants: Constants) -> Table:
    rows = []
    for gpus in GPUS:
        for gradients in (False, True):
            took = step(constants, gpus, gradients=gradients)
            alone = step(constants, 1, gradients=gradients)
            row = {
                "GPUs": str(gpus),
                "weighs": "gradients" if gradients else "losses",
                "step, s": f"{took.seconds:.3f}",
                "all-reduce, share": f"{took.reduce_s / took.seconds:.1%}",
                "efficiency": f"{alone.seconds / took.seconds:.0%}",
                "Jacobian, GB": f"{took.jacobian_bytes / 1e9:.2f}" if gradients else "-",
            }
            rows.append(row)
    return rows


def _searches(constants: Constants) -> Table:
    rows = []
    for trial_s in (60.0, 600.0):
        for slots in GPUS:
            found = search(constants, 10_000, slots, trial_s, 10, constants.trial_overhead_s)
            row = {
                "trial, s": f"{trial_s:g}",
                "parallel trials": str(slots),
                "hours": f"{found.seconds / 3600:.1f}",
                "driver busy": f"{found.driver_busy:.0%}",
                "slots busy": f"{found.slots_busy:.0%}",
            }
            rows.append(row)
    return rows


class Streaming(NamedTuple):
    """What streamed files come to."""

    gpu_bytes_s: float
    """Read by each GPU's worker."""
    storage_bytes_s: float
    built_bytes_s: float
    """From the storage where builders read each lane once."""
    seen: float
    """The share of the blocks that a training comes past, if it meets none twice."""


def streaming(constants: Constants, gpus: int, lanes: int, hold_steps: float) -> Streaming:
    """A worker reads the windows of the lanes of its episodes; fewer lanes than workers are read by
    several of them.
    """
    took = step(constants, gpus, gradients=False)
    window = constants.window_blocks * constants.block_bytes / hold_steps / took.seconds
    each = window * max(1.0, lanes / gpus)
    blocks = constants.data_bytes / constants.block_bytes
    passed = lanes * constants.steps / hold_steps * constants.window_blocks
    return Streaming(each, gpus * each, lanes * window, min(1.0, passed / blocks))


def _data(constants: Constants) -> Table:
    rows = []
    for gpus in GPUS:
        usual, longer = constants.hold_steps, 10 * constants.hold_steps
        for lanes, hold_steps in ((1, usual), (gpus, usual), (gpus, longer)):
            came_to = streaming(constants, gpus, lanes, hold_steps)
            row = {
                "GPUs": str(gpus),
                "lanes": str(lanes),
                "hold_steps": f"{hold_steps:g}",
                "read by each GPU, MB/s": f"{came_to.gpu_bytes_s / 1e6:.0f}",
                "from the storage, GB/s": f"{came_to.storage_bytes_s / 1e9:.1f}",
                "by builders, GB/s": f"{came_to.built_bytes_s / 1e9:.1f}",
                "builders at most": str(lanes),
                "data seen": f"{came_to.seen:.1%}",
            }
            rows.append(row)
    return rows


def _growth(constants: Constants) -> Table:
    flushes = constants.steps / constants.eval_every
    trials = 10_000
    journal = trials * (constants.journal_bytes_a_trial + 10 * constants.journal_bytes_a_report)
    history = written_s(constants.eval_every, flushes, constants.history_s_a_row)
    table = written_s(1, trials, constants.table_s_a_row)
    asks = sum(ask_s(constants, number) for number in range(trials))
    kept = constants.checkpoint_bytes_a_parameter * constants.parameters
    lines = [
        (
            "history.parquet, all flushes",
            f"{constants.steps:,.0f} steps, a flush every {constants.eval_every:g}",
            f"{history:.0f} s",
        ),
        (
            "trials.parquet, if written whenever a trial ends",
            f"{trials:,} trials",
            f"{table:.0f} s (raymtl: at most 2 % of the time)",
        ),
        (
            "asking Optuna",
            f"{trials:,} trials",
            f"{asks:.0f} s, the last {ask_s(constants, trials):.2f} s",
        ),
        ("study.journal", f"{trials:,} trials with 10 reports each", f"{journal / 1e6:.0f} MB"),
        ("a checkpoint", f"{constants.parameters:,.0f} parameters", f"{kept / 1e6:.0f} MB"),
    ]
    return [{"cost": cost, "run": run, "total": total} for cost, run, total in lines]


def printed(found: dict[str, Table]) -> str:
    """As Markdown."""
    parts = []
    for heading, rows in found.items():
        lines = [f"### {heading}", "", f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
        parts.append("\n".join([*lines, *(f"| {' | '.join(row.values())} |" for row in rows)]))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--measure", action="store_true", help="measure the constants of this machine first"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a constant of your own"
    )
    parser.add_argument(
        "--json", type=Path, help="where the constants and the tables are written too"
    )
    given = parser.parse_args()
    if given.measure:
        constants = measured()
    else:
        constants = Constants()
    for text in given.set:
        name, equals, value = text.partition("=")
        if not equals or name not in Constants._fields:
            parser.error(
                f"--set: expected NAME=VALUE with one of {', '.join(Constants._fields)}, got "
                f"'{text}'."
            )
        constants = constants._replace(**{name: float(value)})
    found = tables(constants)
    if given.measure:
        print(json.dumps(constants._asdict(), indent=2), end="\n\n")
    print(printed(found))
    if given.json:
        given.json.write_text(
            json.dumps({"constants": constants._asdict(), "tables": found}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
