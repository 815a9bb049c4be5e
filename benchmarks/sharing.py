"""Every sharing architecture, and tuned scalarization, on real data at equal budget.

    python -m benchmarks.sharing

For each data set and seed every method tries the same number of settings (learning rates times its
main hyperparameter, or times weight vectors), each for the same number of gradient steps on the
same batches. The setting and the step with the lowest validation error, averaged over tasks, stand;
only their test error is kept. The single tasks, one network each, are chosen in just the same way.
"""

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy.stats import rankdata, t
from torch import Tensor
from torch.utils._pytree import tree_map

from benchmarks.tabular import LOADERS, Dataset, draw
from raymtl.encoders import MLPSpec
from raymtl.evaluation.relative import delta_m, delta_p
from raymtl.learners import MAML
from raymtl.sharing import HardSpec, SharingSpec, SoftSpec
from raymtl.sharing.base import SharingSpecBase
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import meta_gradient
from raymtl.tasks import loss_sums, metric_sums, metric_values
from raymtl.types import Batch, DivergedError, Episode, Params, Spec, Task
from raymtl.weighting import EqualSpec, StaticSpec
from raymtl.weighting.base import WeightingSpecBase

ARCHITECTURES: dict[str, type[SharingSpecBase]] = {
    member.model_fields["name"].default: member for member in get_args(get_args(SharingSpec)[0])
}
SINGLE, SCALARIZED = "single task", "scalarization"
METHODS = (SINGLE, SCALARIZED, *ARCHITECTURES)

RATES = (0.005, 0.03)
ALONE_RATES = (0.005, 0.03, 0.01, 0.002, 0.02, 0.001)  # where nothing else is searched
NUM_SETTINGS = len(ALONE_RATES)

STEPS = {"energy": 300, "jura": 150, "water": 150, "school": 100, "parkinsons": 300, "digits": 300}
"""Gradient steps of every try; where 150 are enough to overfit, no more."""

MAIN: dict[str, tuple[str, tuple[Any, ...]]] = {
    "adversarial": ("reversal", (0.05, 0.005, 0.5)),
    "attention": ("heads", (4, 1, 8)),
    "cgc": ("num_shared_experts", (1, 2, 4)),
    "cross_stitch": ("own", (0.9, 0.7, 0.5)),
    "dselect_k": ("k", (2, 1, 4)),
    "low_rank": ("rank", (2, 1, 4)),
    "mmoe": ("num_experts", (4, 2, 8)),
    "mtan": ("reduction", (1, 2, 4)),
    "ple": ("num_shared_experts", (1, 2, 4)),
    "relation": ("lambda_2", (0.001, 0.01, 0.1)),
    "sluice": ("own", (0.9, 0.7, 0.5)),
    "soft": ("strength", (0.001, 0.01, 0.1)),
}
"""The hyperparameter that is searched beside the learning rate: as many values as leave room for
all RATES.
"""


def trees(names: Sequence[str], num_stages: int) -> list[dict[str, dict[str, Any]]]:
    """All tasks part after the first stage; or each half of them has a trunk; or they never part:
    hard sharing.
    """
    first, *others = names
    leader, *followers = names[len(names) // 2 :]
    halves = {leader: {"follows": first, "stages": 0}}
    halves |= {name: {"follows": leader, "stages": num_stages} for name in followers}
    return [{name: {"follows": first, "stages": 1} for name in others}, halves, {}]


def levels(names: Sequence[str], num_stages: int) -> list[dict[str, int]]:
    """Half of the tasks is supervised after the first stage, or the other half is, or none: hard
    sharing.
    """
    half = len(names) // 2
    return [dict.fromkeys(names[:half], 1), dict.fromkeys(names[half:], 1), {}]


STRUCTURE: dict[str, tuple[str, Callable[[Sequence[str], int], Sequence[Any]]]] = {
    "branching": ("tree", trees),
    "hierarchical": ("levels", levels),
}
"""The same, where the values name the tasks."""


class Protocol(Spec):
    """All that a result depends on beside data set, seed and method."""

    steps: Mapping[str, int] = STEPS
    settings: int = NUM_SETTINGS
    """Settings that every method tries."""
    checks: int = 10
    """Looks at the validation error during training."""
    rows: int = 64
    """Of a batch, where tasks share inputs."""
    own_rows: int = 16
    """Of a batch for each task, where they do not."""
    most_tasks: Mapping[str, int] = {"school": 139, "parkinsons": 10}
    """Of the schools, which are all, and of the patients, who are 42."""
    hidden: tuple[int, ...] = (32, 32)
    most_seconds: float = 600.0
    """What would take longer for one data set, seed and method, judged by its first steps, is not
    run.
    """


class Setting(NamedTuple):
    """One of the tries."""

    lr: float
    sharing: SharingSpecBase
    weighting: WeightingSpecBase


def settings(method: str, tasks: Sequence[Task], seed: int, protocol: Protocol) -> list[Setting]:
    """What the method tries."""
    names = [task.name for task in tasks]
    if method == SINGLE:
        found = [Setting(lr, SoftSpec(strength=0), EqualSpec()) for lr in ALONE_RATES]
    elif method == SCALARIZED:
        found = [
            Setting(lr, HardSpec(), weights) for weights in _weightings(names, seed) for lr in RATES
        ]
    elif method in MAIN or method in STRUCTURE:
        if method in MAIN:
            key, values = MAIN[method]
        else:
            key, make = STRUCTURE[method]
            values = tuple(make(names, len(protocol.hidden)))
        found = [
            Setting(lr, ARCHITECTURES[method](**{key: value}), EqualSpec())
            for value in values
            for lr in RATES
        ]
    else:
        found = [Setting(lr, ARCHITECTURES[method](), EqualSpec()) for lr in ALONE_RATES]
    return found[: protocol.settings]


def _weightings(names: Sequence[str], seed: int) -> list[StaticSpec]:
    """Equal weights, then points drawn uniformly from the simplex."""
    draws = np.random.default_rng(seed).dirichlet(
        np.ones(len(names)), NUM_SETTINGS // len(RATES) - 1
    )
    return [
        StaticSpec(),
        *(StaticSpec(weights=dict(zip(names, map(float, row), strict=True))) for row in draws),
    ]


def refusal(method: str, data: Dataset, protocol: Protocol) -> str | None:
    """Why the method's own spec does not take these tasks; None where it does."""
    encoder = MLPSpec(hidden=protocol.hidden).build(data.input_shape)
    for setting in settings(method, data.tasks, 0, protocol):
        refused = setting.sharing.check(data.tasks, encoder)
        if refused:
            return f"refused: sharing.{refused[0]}: {refused[1]}"
    return None


def build(data: Dataset, setting: Setting, protocol: Protocol, seed: int) -> Algorithm:
    """Plain multi-task training of a small network: the query loss after no inner step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        copies = setting.sharing.num_encoders(len(data.tasks))
        encoders = [MLPSpec(hidden=protocol.hidden).build(data.input_shape) for _ in range(copies)]
        model = setting.sharing.build(data.tasks, encoders)
    return Algorithm(data.tasks, model, setting.weighting.build(data.tasks), MAML(inner_steps=0))


def errors(algorithm: Algorithm, params: Params, batch: Batch) -> Tensor:
    """[K]: for regression the RMSE in units of the training spread, for classification the share of
    errors.
    """
    with torch.no_grad():
        predictions = algorithm.predict(params, batch.inputs)
        losses = loss_sums(algorithm.tasks, predictions, batch)
        sums = metric_sums(algorithm.tasks, predictions, batch)
    counts = losses.new_tensor([len(batch.targets[task.name]) for task in algorithm.tasks])
    scores = metric_values(algorithm.tasks, sums, counts)
    return torch.stack(
        [
            (loss / count).sqrt()
            if task.kind.predicts_numbers
            else 1 - scores[f"{task.name}.accuracy"]
            for task, loss, count in zip(algorithm.tasks, losses, counts, strict=True)
        ]
    )


class Try(NamedTuple):
    """The best of one training run by its validation error."""

    val: float
    test: list[float]
    step: int
    num_parameters: int


class Stopwatch:
    """Ends a training as soon as its first steps say that all of them will take too long."""

    def __init__(self, steps: int, limit_s: float, clock: Callable[[], float]) -> None:
        self.steps, self.limit_s, self.clock = steps, limit_s, clock
        self.start = 0.0

    def before(self, step: int) -> None:
        """Called before each step. Raises TimeoutError."""
        if step == 1:  # the first one pays for warming up
            self.start = self.clock()
        if step == 6:
            each_s = (self.clock() - self.start) / 5
            if each_s * self.steps > self.limit_s:
                raise TimeoutError(f"{each_s * 1000:.0f} ms a step")


def set_rate(optimizer: torch.optim.Optimizer, lr: float, step: int, steps: int) -> None:
    """The rate of this step, which falls from `lr` to 0 along half a cosine."""
    share = (1 + math.cos(math.pi * step / steps)) / 2
    for group in optimizer.param_groups:
        group["lr"] = group["lr_scale"] * lr * share


def is_looked_at(step: int, steps: int, looks: int) -> bool:
    """Whether there is a look at the validation rows after this step, counted from 0."""
    return (step + 1) * looks // steps > step * looks // steps


def optimiser(algorithm: Algorithm, params: Mapping[str, Tensor]) -> torch.optim.Adam:
    """Adam, whose groups have the scale of the rate that the architecture wants."""
    scales: dict[float, list[Tensor]] = {}
    for name, value in params.items():
        prefix, first = name.split(".")[:2]
        scale = 1.0
        if prefix == "model":
            scale = algorithm.model.lr_scale.get(first, 1.0)
        scales.setdefault(scale, []).append(value)
    groups = [{"params": group, "lr_scale": scale} for scale, group in scales.items()]
    return torch.optim.Adam(groups)


def train(
    data: Dataset, setting: Setting, protocol: Protocol, seed: int, limit_s: float = math.inf
) -> Try:
    """The best look at the validation rows; a diverged run counts as it stood before.

    Raises TimeoutError as soon as the first steps say that all of them will take longer than
    `limit_s`.
    """
    algorithm = build(data, setting, protocol, seed)
    params = algorithm.init_params()
    optimizer = optimiser(algorithm, params)
    if isinstance(data.train.inputs, Tensor):
        rows = protocol.rows
    else:
        rows = protocol.own_rows
    generator = torch.Generator().manual_seed(seed)
    number = sum(value.numel() for value in params.values())
    best = Try(math.inf, [math.inf] * len(data.tasks), 0, number)
    steps = protocol.steps[data.name]
    stopwatch = Stopwatch(steps, limit_s, time.perf_counter)
    for step in range(steps):
        stopwatch.before(step)
        drawn = draw(data.train, rows, generator)
        batch = tree_map(lambda leaf: leaf[None], drawn)  # the axis of episodes
        try:
            meta = meta_gradient(
                algorithm, params, Episode(batch, batch), execution=ExecutionConfig("loop")
            )
        except DivergedError:
            break
        for name, value in params.items():
            value.grad = meta.grads[name]
        set_rate(optimizer, setting.lr, step, steps)
        optimizer.step()
        if is_looked_at(step, steps, protocol.checks):
            val = float(errors(algorithm, params, data.val).mean())
            if val < best.val:
                test = errors(algorithm, params, data.test).tolist()
                best = best._replace(val=val, test=test, step=step + 1)
    return best


@lru_cache(maxsize=2)
def _load(folder: str, dataset: str, seed: int, most_tasks: int) -> Dataset:
    return LOADERS[dataset](Path(folder), seed, most_tasks)


def cell(folder: str, dataset: str, seed: int, method: str, protocol: Protocol) -> dict[str, Any]:
    """One data set, seed and method: its row of the JSON file."""
    start = time.perf_counter()
    data = _load(folder, dataset, seed, protocol.most_tasks.get(dataset, 0))
    row: dict[str, Any] = {"dataset": dataset, "seed": seed, "method": method}
    refused = refusal(method, data, protocol)
    if refused:
        return row | {"not_run": refused}
    tried = settings(method, data.tasks, seed, protocol)
    try:
        runs = [
            train(data, s, protocol, seed, protocol.most_seconds / protocol.settings) for s in tried
        ]
    except TimeoutError as error:
        return row | {"not_run": f"too slow: {error}"}
    best = min(range(len(runs)), key=lambda index: runs[index].val)
    if not math.isfinite(runs[best].val):
        return row | {"not_run": "every setting diverged"}
    chosen = tried[best]
    return row | {
        "test": dict(zip((task.name for task in data.tasks), runs[best].test, strict=True)),
        "val": runs[best].val,
        "step": runs[best].step,
        "lr": chosen.lr,
        "sharing": chosen.sharing.model_dump(mode="json"),
        "weighting": chosen.weighting.model_dump(mode="json"),
        "num_parameters": runs[best].num_parameters,
        "tries": [run.val if math.isfinite(run.val) else None for run in runs],
        "seconds": time.perf_counter() - start,
    }


class Summary(NamedTuple):
    """A method's numbers; each a value for every seed, and nothing where the method was not run."""

    method: str
    errors: Mapping[str, Sequence[float]]
    changes: Mapping[str, Sequence[float]]
    """delta_m of each data set alone."""
    delta_m: Sequence[float]
    delta_p: Sequence[float]
    ranks: Sequence[float]
    not_run: Mapping[str, str]


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[Summary]:
    """One entry for each method, the lowest mean rank first.

    Ranks are among the methods that ran, task by task; they and the deltas are averaged over the
    tasks of a data set and then over the data sets, so that many tasks do not outvote few.
    """
    results: Results = {
        (row["dataset"], row["seed"], row["method"]): row["test"] for row in rows if "test" in row
    }
    methods = list(dict.fromkeys(row["method"] for row in rows))
    ranks = mean_ranks(results, methods)
    summaries = []
    for method in methods:
        reasons = {
            row["dataset"]: row["not_run"]
            for row in rows
            if row["method"] == method and "not_run" in row
        }
        summaries.append(summary_of(method, results, ranks, reasons))
    return sorted(summaries, key=lambda s: float(np.mean(s.ranks)) if s.ranks else math.inf)


Results = Mapping[tuple[str, int, str], Mapping[str, float]]
"""(data set, seed, method) -> the test error of each task."""


def mean_ranks(results: Results, methods: Sequence[str]) -> dict[tuple[str, int, str], float]:
    """The rank of each method that ran, averaged over the tasks of a data set."""
    ranks: dict[tuple[str, int, str], float] = {}
    for dataset, seed in dict.fromkeys((dataset, seed) for dataset, seed, _ in results):
        ran = [method for method in methods if (dataset, seed, method) in results]
        table = [list(results[dataset, seed, method].values()) for method in ran]
        for method, rank in zip(ran, rankdata(np.array(table), axis=0).mean(1), strict=True):
            ranks[dataset, seed, method] = float(rank)
    return ranks


def summary_of(
    method: str,
    results: Results,
    ranks: Mapping[tuple[str, int, str], float],
    reasons: Mapping[str, str],
) -> Summary:
    """What one method reached on all data sets with all seeds."""
    seeds = sorted({seed for _, seed, _ in results})
    datasets = list(dict.fromkeys(dataset for dataset, _, _ in results))
    by_dataset = {
        d: [
            float(np.mean(list(results[d, s, method].values())))
            for s in seeds
            if (d, s, method) in results
        ]
        for d in datasets
    }
    changes: dict[str, list[float]] = {}
    deltas_m: list[float] = []
    deltas_p: list[float] = []
    mean_rank: list[float] = []
    for seed in seeds:
        both = {
            d: (_scores(results[d, seed, method]), _scores(results[d, seed, SINGLE]))
            for d in datasets
            if (d, seed, method) in results and (d, seed, SINGLE) in results
        }
        changes_m = known({d: delta_m(*pair) for d, pair in both.items()})
        deltas_m += mean_of(changes_m)
        deltas_p += mean_of(known({d: delta_p(*pair) for d, pair in both.items()}))
        for dataset in both:
            changes.setdefault(dataset, [])
        for dataset, change in changes_m.items():
            changes[dataset].append(change)
        mean_rank += mean_of(known({d: ranks.get((d, seed, method)) for d in datasets}))
    return Summary(method, by_dataset, changes, deltas_m, deltas_p, mean_rank, reasons)


def known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def mean_of(values: Mapping[str, float]) -> list[float]:
    """The mean, or nothing of nothing."""
    if not values:
        return []
    return [sum(values.values()) / len(values)]


def _scores(test: Mapping[str, float]) -> dict[str, dict[str, tuple[float, bool]]]:
    return {task: {"error": (value, False)} for task, value in test.items()}


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half the width of its 95 % interval by Student's t; None where one value alone says
    nothing of it.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, float(t.ppf(0.975, len(values) - 1)) * spread


def _told(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    mean, half = interval(values)
    return f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def tables(
    summaries: Sequence[Summary], datasets: Sequence[str]
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each table."""
    partly = [
        f" ({len(datasets) - len(s.not_run)} of {len(datasets)} sets)" if s.not_run else ""
        for s in summaries
    ]
    names = [summary.method + note for summary, note in zip(summaries, partly, strict=True)]
    errors = [
        [name, *(_told(s.errors.get(d, ()), 3) for d in datasets), _told(s.ranks, 2)]
        for name, s in zip(names, summaries, strict=True)
    ]
    changes = [
        [
            name,
            *(_told(s.changes.get(d, ()), 1) for d in datasets),
            _told(s.delta_m, 1),
            _told(s.delta_p, 1),
        ]
        for name, s in zip(names, summaries, strict=True)
    ]
    return [
        ("Test error, mean over tasks", ["method", *datasets, "mean rank"], errors),
        (
            "Change of the error against single tasks of the same seed, %; lower is better but in "
            "delta_p",
            ["method", *datasets, "delta_m", "delta_p"],
            changes,
        ),
    ]


def markdown(summaries: Sequence[Summary], datasets: Sequence[str]) -> str:
    """The tables, and below them what was not run and why."""
    lines: list[str] = []
    for title, header, rows in tables(summaries, datasets):
        lines += [f"{title}:", "", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    return "\n".join([*lines, *_reasons(summaries)]).rstrip() + "\n"


def _reasons(summaries: Sequence[Summary]) -> list[str]:
    return [
        f"- {s.method}, {name}: {reason}" for s in summaries for name, reason in s.not_run.items()
    ]


def read_rows(path: Path | None, protocol: Spec) -> list[dict[str, Any]]:
    """What the file holds; nothing where there is none. Raises typer.BadParameter where it is
    another protocol's.
    """
    if path is None or not path.exists():
        return []
    found = json.loads(path.read_text())
    if found["protocol"] != protocol.model_dump(mode="json"):
        raise typer.BadParameter(f"{path} holds results of another protocol. Name another file.")
    rows: list[dict[str, Any]] = found["results"]
    return rows


def write_rows(path: Path | None, protocol: Spec, rows: Sequence[Mapping[str, Any]]) -> None:
    if path is None:
        return
    partial = path.with_suffix(".partial")
    partial.write_text(
        json.dumps({"protocol": protocol.model_dump(mode="json"), "results": rows}, indent=1)
    )
    partial.replace(path)


def progress_bar() -> Progress:
    """A bar of what is done, on the standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


def run_cells(
    cell: Callable[..., dict[str, Any]],
    jobs: Sequence[tuple[Any, ...]],
    processes: int,
    describe: Callable[[dict[str, Any]], str],
) -> Iterator[dict[str, Any]]:
    """Calls `cell` with the arguments of each job, in processes with one thread each, and yields
    the rows as they are done; a bar shows how many are.
    """
    context = get_context("spawn")
    with (
        ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool,
        progress_bar() as progress,
    ):
        bar = progress.add_task("training", total=len(jobs))
        futures = [pool.submit(cell, *job) for job in jobs]
        for future in as_completed(futures):
            row = future.result()
            yield row
            progress.update(bar, advance=1, description=describe(row))


class Plan(NamedTuple):
    """What is run, and by what."""

    protocol: Protocol
    folder: Path
    datasets: Sequence[str]
    methods: Sequence[str]
    seeds: int
    processes: int
    json_path: Path | None


def run(plan: Plan) -> list[dict[str, Any]]:
    """The rows of all data sets, seeds and methods; what the JSON file holds is not run again."""
    rows = read_rows(plan.json_path, plan.protocol)
    done = {(row["dataset"], row["seed"], row["method"]) for row in rows}
    every = itertools.product(range(plan.seeds), plan.datasets, plan.methods)
    wanted = [(dataset, seed, method) for seed, dataset, method in every]
    todo = [key for key in wanted if key not in done]
    jobs = [(str(plan.folder), *key, plan.protocol) for key in todo]

    def describe(row: Mapping[str, Any]) -> str:
        return f"{row['dataset']}, seed {row['seed']}: {row['method']}"

    for row in run_cells(cell, jobs, plan.processes, describe):
        rows.append(row)
        write_rows(plan.json_path, plan.protocol, rows)
    own = [row for row in rows if (row["dataset"], row["seed"], row["method"]) in set(wanted)]
    return sorted(own, key=lambda row: wanted.index((row["dataset"], row["seed"], row["method"])))


def folder_of(data: Path | None) -> Path:
    """The folder of the data. Raises typer.BadParameter where there is none."""
    folder = data
    if folder is None and "RAYMTL_DATA" in os.environ:
        folder = Path(os.environ["RAYMTL_DATA"]) / "tabular"
    if folder is None or not folder.is_dir():
        raise typer.BadParameter(
            f"expected the data's folder in --data or $RAYMTL_DATA/tabular, got {folder}."
        )
    return folder


def protocol_of(times: int, most_tasks: int | None, quick: bool) -> Protocol:
    """The protocol; `quick` leaves it 20 steps of few tasks."""
    most = Protocol().most_tasks
    if most_tasks is not None:
        most = dict.fromkeys(most, most_tasks)
    if quick:
        few = dict.fromkeys(most, 4)
        return Protocol(steps=dict.fromkeys(STEPS, 20), settings=2, checks=2, most_tasks=few)
    steps = {name: times * number for name, number in STEPS.items()}
    return Protocol(steps=steps, most_tasks=most)


def main(  # noqa: PLR0913  each is an option of the command
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data; else $RAYMTL_DATA/tabular.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Results; what it holds is not run again.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A smoke run of two data sets; its numbers say nothing.")
    ] = False,
    datasets: Annotated[list[str], typer.Option("--dataset")] = list(LOADERS),  # noqa: B006
    methods: Annotated[list[str], typer.Option("--method")] = list(METHODS),  # noqa: B006
    seeds: Annotated[
        int, typer.Option(help="Seeds, from 0 on: of split, initialisation and batches.", min=1)
    ] = 3,
    processes: Annotated[int, typer.Option(min=1)] = 2,
    times: Annotated[
        int, typer.Option(help="Multiplies the gradient steps of every try.", min=1)
    ] = 1,
    most_tasks: Annotated[
        int | None, typer.Option(help="Schools, and patients, at most.", min=2)
    ] = None,
) -> None:
    """Prints the test error of every sharing architecture and of tuned scalarization, at equal
    budget.
    """
    for given, known in ((datasets, LOADERS), (methods, METHODS)):
        for name in given:
            if name not in known:
                raise typer.BadParameter(f"expected one of {', '.join(known)}, got '{name}'.")
    folder = folder_of(data)
    protocol = protocol_of(times, most_tasks, quick)
    if quick:
        datasets, seeds = [name for name in datasets if name in ("jura", "school")], 1
    rows = run(Plan(protocol, folder, datasets, methods, seeds, processes, json_path))
    _show(Console(), summarise(rows), datasets, protocol, seeds)


def _show(
    console: Console,
    found: Sequence[Summary],
    datasets: Sequence[str],
    protocol: Protocol,
    seeds: int,
) -> None:
    if not console.is_terminal:
        print(markdown(found, datasets), end="")
        return
    for title, header, rows in tables(found, datasets):
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in _reasons(found):
        console.print(line)
    console.print(
        f"{seeds} seeds, 95 % intervals; {protocol.settings} settings for every method and seed, "
        "all of as many steps, chosen on validation rows."
    )


if __name__ == "__main__":
    typer.run(main)
