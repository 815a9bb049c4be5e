"""Weightings and per-task gradients beside TorchJD, in time and memory.

    python -m benchmarks.weighting

Ours and theirs take turns in one process with equal threads, on equal models and gradients. A ratio
is the median over the turns of their time divided by ours, with its quartiles: above 1 ours is
faster. Peaks are of fresh processes. TorchJD's solvers for UPGrad, DualProj, CAGrad and Nash-MTL
are extras of it: a method without its solver is left out.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import torch
import torchjd.aggregation
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchjd.aggregation import Aggregator
from torchjd.autojac import jac_to_grad, mtl_backward

from benchmarks.hard_sharing import ModelKind, Network, network
from raymtl.encoders import MLPSpec
from raymtl.learners import MAML
from raymtl.sharing import HardSpec
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import meta_gradient, update_after_step
from raymtl.step.task_gradients import Losses, TaskGradients
from raymtl.step.workers import Workers
from raymtl.tasks import regression
from raymtl.types import Batch, Episode
from raymtl.weighting import GradientWeighting, WeightingSpec
from raymtl.weighting.base import WeightingSpecBase

WEIGHTINGS: dict[str, type[WeightingSpecBase]] = {
    member.model_fields["name"].default: member for member in get_args(get_args(WeightingSpec)[0])
}
BOTH: dict[str, str] = {  # methods that need gradients here and are aggregators there
    name: cls
    for name, spec in sorted(WEIGHTINGS.items())
    for cls in torchjd.aggregation.__all__
    if spec.needs_gradients and cls.lower() == name.replace("_", "")
}

PARTS = ("aggregation", "gradients", "memory", "many_tasks")
CHUNKS: tuple[int | None, ...] = (None, 1, 2, 4)
"""TorchJD's parallel_chunk_size: how many tasks one vmapped backward pass takes; all of them by
default.
"""

Variants = Mapping[str, Callable[[], object]]


class Timing(NamedTuple):
    """Milliseconds of each turn."""

    turns_ms: list[float]

    @property
    def median_ms(self) -> float:
        return statistics.median(self.turns_ms)

    def ratio(self, ours: "Timing") -> dict[str, float]:
        """This time over ours, turn by turn."""
        ratios = [theirs / own for theirs, own in zip(self.turns_ms, ours.turns_ms, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        return {"ratio": median, "low": low, "high": high}


def take_turns(variants: Variants, turns: int) -> dict[str, Timing]:
    """Runs each variant once to warm up, then all of them in turn, beginning with another one each
    time.
    """
    for run in variants.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            result = variants[name]()
            times[name].append(1000 * (time.perf_counter() - start))
            del result
    return {name: Timing(turns_ms) for name, turns_ms in times.items()}


def aggregator(name: str, num_tasks: int) -> Aggregator:
    """Theirs, with the hyperparameters that are our defaults."""
    ours = WEIGHTINGS[name]()
    given: dict[str, Any] = {
        key: getattr(ours, key) for key in ("c", "alpha", "beta") if key in type(ours).model_fields
    }
    if name == "nash_mtl":
        given["n_tasks"] = num_tasks
    made: Aggregator = getattr(torchjd.aggregation, BOTH[name])(**given)
    return made


def weighting(name: str, num_tasks: int) -> GradientWeighting:
    tasks = [regression(f"t{index}", 0.0, 1.0) for index in range(num_tasks)]
    made = WEIGHTINGS[name]().build(tasks)
    assert isinstance(made, GradientWeighting)
    return made


def conflicting_rows(num_tasks: int, width: int) -> Tensor:
    """Gradients of which many conflict and some nearly agree: an eighth of the variance is noise of
    their own.
    """
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(num_tasks, 7, generator=generator) @ torch.randn(
        7, width, generator=generator
    )
    return common + torch.randn(num_tasks, width, generator=generator)


def aggregation(
    num_tasks: int, width: int, turns: int, methods: Sequence[str] = tuple(BOTH)
) -> list[dict[str, Any]]:
    """From rows [K, P] that are there to their combination [P]."""
    rows = conflicting_rows(num_tasks, width)
    theta = torch.zeros(width, requires_grad=True)
    losses, tasks = torch.ones(num_tasks), torch.arange(num_tasks)
    found: list[dict[str, Any]] = []
    for name in methods:
        own = weighting(name, num_tasks)
        gradients = TaskGradients([], range(num_tasks), [theta], [], Workers())

        def ours(own: GradientWeighting = own, gradients: TaskGradients = gradients) -> Tensor:
            gradients.change(
                lambda _: rows
            )  # What a method changed in the last turn is taken back, at no cost.
            return gradients.combine(own(losses, gradients, tasks))

        try:
            peer = aggregator(name, num_tasks)
            peer(rows[:, :100])
            timed = take_turns({"ours": ours, "theirs": partial(peer, rows)}, turns)
        except ImportError as error:
            found.append({"method": name, "missing": str(error)})
            continue
        found.append(
            {
                "method": name,
                "ours_ms": timed["ours"].median_ms,
                "theirs_ms": timed["theirs"].median_ms,
                **timed["theirs"].ratio(timed["ours"]),
            }
        )
    return found


def our_step(net: Network, method: str) -> Callable[[], Tensor]:
    """Forward pass, a backward pass a task, weights, one flat gradient."""
    num_tasks = len(net.heads)
    own, tasks = weighting(method, num_tasks), torch.arange(num_tasks)

    def step() -> Tensor:
        losses = tuple(loss[None] for loss in net.losses()[1])
        groups = tuple((task,) for task in range(num_tasks))
        micro_batches = [lambda: Losses(losses, groups, torch.zeros(()))]
        gradients = TaskGradients(
            micro_batches, range(num_tasks), net.shared, net.private, Workers()
        )
        return gradients.combine(own(torch.cat(losses).detach(), gradients, tasks))

    return step


def their_step(
    net: Network, method: str, chunk: int | None, by_parts: bool = False
) -> Callable[[], None]:
    """The same by `mtl_backward` and `jac_to_grad`; `by_parts` is the latter's
    optimize_gramian_computation.
    """
    peer = aggregator(method, len(net.heads))

    def step() -> None:
        for parameter in [*net.shared, *net.private]:
            parameter.grad = None
        features, losses = net.losses()
        mtl_backward(losses, features=features, parallel_chunk_size=chunk)
        jac_to_grad(net.shared, peer, optimize_gramian_computation=by_parts)  # type: ignore[call-overload]  # its overloads want a literal

    return step


def gradients(
    kind: ModelKind,
    num_tasks: int,
    methods: Sequence[str],
    turns: int,
    batch_size: int | None = None,
) -> list[dict[str, Any]]:
    """A step each; theirs by default, with the chunk size that is fastest here, and that with
    Gramians by parts.
    """
    net = network(kind, num_tasks, batch_size)
    found: list[dict[str, Any]] = []
    for method in methods:
        row: dict[str, Any] = {"model": kind, "tasks": num_tasks, "method": method}
        variants: dict[str, Callable[[], object]] = {"ours": our_step(net, method)}
        try:
            for chunk in CHUNKS:
                variants[f"chunk {chunk}"] = their_step(net, method, chunk)
            variants["by parts"] = their_step(net, method, 1, by_parts=True)
            timed = take_turns(variants, turns)
        except ImportError as error:
            found.append({**row, "missing": str(error)})
            continue
        best = min((f"chunk {chunk}" for chunk in CHUNKS), key=lambda name: timed[name].median_ms)
        row["ours_ms"] = timed["ours"].median_ms
        for column, name in (
            ("default", f"chunk {None}"),
            ("best", best),
            ("by_parts", "by parts"),
        ):
            row[column] = {
                "variant": name,
                "ms": timed[name].median_ms,
                **timed[name].ratio(timed["ours"]),
            }
        found.append(row)
    return found


def memory(kind: ModelKind, num_tasks: int, method: str) -> dict[str, Any]:
    """Peaks of one step each, above what the process held before it."""
    row: dict[str, Any] = {"model": kind, "tasks": num_tasks, "method": method}
    variants = {"ours": "ours", "default": "None", "chunk_1": "1", "by_parts": "by_parts"}
    return row | {
        name: peak_mib(
            {"what": "step", "kind": kind, "tasks": num_tasks, "method": method, "variant": variant}
        )
        for name, variant in variants.items()
    }


def many_tasks(num_tasks: int, steps: int) -> list[dict[str, Any]]:
    """Peaks of training 1,000 regressions with FAMO and with equal weights."""
    peaks = {
        name: peak_mib({"what": "train", "method": name, "tasks": num_tasks, "steps": steps})
        for name in ("equal", "famo")
    }
    return [
        {"method": name, "mib": mib, "to_equal": mib / peaks["equal"]}
        for name, mib in peaks.items()
    ]


def train(method: str, num_tasks: int, steps: int) -> Callable[[], None]:
    """Joint training of regressions with a head each on one mlp, as the outer loop does it."""
    tasks = tuple(regression(f"t{index}", 0.0, 1.0) for index in range(num_tasks))
    spec = WEIGHTINGS[method]()
    model = HardSpec().build(tasks, [MLPSpec(hidden=(128, 128)).build((16,))])
    algorithm = Algorithm(tasks, model, spec.build(tasks), MAML(inner_steps=0))
    inputs = torch.randn(1, 256, 16)
    targets = inputs @ torch.randn(16, num_tasks)
    batch = Batch(inputs, {task.name: targets[..., index] for index, task in enumerate(tasks)}, {})
    episodes, execution = Episode(batch, batch), ExecutionConfig()

    def run() -> None:
        params = algorithm.init_params()
        optimizer = torch.optim.Adam(params.values(), lr=1e-3)
        for _ in range(steps):
            meta = meta_gradient(algorithm, params, episodes, execution=execution)
            for name, value in params.items():
                value.grad = meta.grads[name]
            optimizer.step()
            if spec.needs_post_step_losses:
                update_after_step(algorithm, params, episodes, meta, execution=execution)

    return run


def peak_mib(measured: Mapping[str, Any]) -> float:
    """What a fresh process needs for it, in MiB."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.weighting",
        "--measure",
        json.dumps(dict(measured)),
    ]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1]
    )
    if run.returncode:
        raise RuntimeError(f"{measured} failed:\n{run.stderr}")
    return float(run.stdout.splitlines()[-1])


def measure(what: str, method: str, tasks: int, **settings: Any) -> float:
    """The same in this process: the peak after two runs less that after everything was built."""
    if what == "train":
        run: Callable[[], object] = train(method, tasks, settings["steps"])
    else:
        net, variant = network(settings["kind"], tasks), settings["variant"]
        if variant == "ours":
            run = our_step(net, method)
        elif variant == "by_parts":
            run = their_step(net, method, 1, by_parts=True)
        else:
            run = their_step(net, method, None if variant == "None" else int(variant))
    before = _high_water_mib()
    for _ in range(2):
        run()
    return _high_water_mib() - before


def _high_water_mib() -> float:
    # Not getrusage: there a process inherits the peak of the one that started it.
    status = Path("/proc/self/status").read_text()
    return (
        next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        / 1024
    )


def _spread(value: Mapping[str, float]) -> str:
    return f"{value['ratio']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


Rows = list[dict[str, Any]]


def tables(found: Mapping[str, Rows]) -> list[Table]:
    """One for each part that was run."""
    makers: dict[str, Callable[[Rows], Table]] = {
        "aggregation": aggregation_table,
        "gradients": gradients_table,
        "memory": memory_table,
        "many_tasks": many_tasks_table,
    }
    return [make(found[part]) for part, make in makers.items() if part in found]


def aggregation_table(rows: Rows) -> Table:
    headers = ("method", "ours ms", "TorchJD ms", "ratio (quartiles)")
    table = Table(*headers, title="Weights and sum of given gradients")
    for row in rows:
        if "missing" in row:
            table.add_row(row["method"], "", "", "[dim]its solver is not installed[/]")
        else:
            table.add_row(
                row["method"], f"{row['ours_ms']:.2f}", f"{row['theirs_ms']:.2f}", _spread(row)
            )
    return table


def gradients_table(rows: Rows) -> Table:
    headers = (
        "model",
        "tasks",
        "method",
        "ours ms",
        "default",
        "best chunk size",
        "by parts, chunk 1",
    )
    table = Table(*headers, title="Gradients and weighting: TorchJD ms, ratio (quartiles)")
    for row in rows:
        start = (row["model"], str(row["tasks"]), row["method"])
        if "missing" in row:
            table.add_row(*start, "", "[dim]its solver is not installed[/]")
            continue
        theirs = [f"{row[c]['ms']:.1f}, {_spread(row[c])}" for c in ("default", "best", "by_parts")]
        theirs[1] = f"{row['best']['variant']}: {theirs[1]}"
        table.add_row(*start, f"{row['ours_ms']:.1f}", *theirs)
    return table


def memory_table(rows: Rows) -> Table:
    headers = ("model", "tasks", "method", "ours MiB", "default", "chunk 1", "by parts")
    table = Table(*headers, title="Peak of one step")
    for row in rows:
        peaks = [f"{row[column]:.0f}" for column in ("ours", "default", "chunk_1", "by_parts")]
        table.add_row(row["model"], str(row["tasks"]), row["method"], *peaks)
    return table


def many_tasks_table(rows: Rows) -> Table:
    headers = ("weighting", "peak MiB", "to equal")
    table = Table(*headers, title="Training of many small regressions")
    for row in rows:
        table.add_row(row["method"], f"{row['mib']:.0f}", f"{row['to_equal']:.2f}")
    return table


def run(parts: Sequence[str], quick: bool) -> dict[str, Rows]:
    """The rows of these parts; `quick` takes few turns and small sizes."""
    methods = [name for name in ("pcgrad", "mgda", "upgrad") if name in BOTH]
    kinds: list[tuple[ModelKind, int]] = [("lenet", 8), ("resnet18", 8), ("resnet18_large", 8)]
    if quick:
        methods, kinds = methods[:1], kinds[:2]
    found: dict[str, Rows] = {}
    if "aggregation" in parts:
        found["aggregation"] = aggregation(40, 250_000, turns=5 if quick else 15)
    if "gradients" in parts:
        found["gradients"] = [
            *gradients("lenet", 2, methods, turns=10 if quick else 60),
            *gradients("lenet", 8, methods, turns=6 if quick else 40),
            *gradients("resnet18", 8, methods, turns=3 if quick else 12),
        ]
        if not quick:
            found["gradients"] += gradients("resnet18_large", 8, methods[:1], turns=4)
    if "memory" in parts:
        found["memory"] = [memory(kind, tasks, "pcgrad") for kind, tasks in kinds]
    if "many_tasks" in parts:
        found["many_tasks"] = many_tasks(1000, steps=3 if quick else 10)
    return found


def main(
    quick: Annotated[bool, typer.Option(help="Few turns and small sizes: minutes.")] = False,
    part: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(PARTS)}; all by default.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of both sides.")] = 1,
    to_json: Annotated[
        Path | None, typer.Option("--json", help="Where to write the numbers as well.")
    ] = None,
    measured: Annotated[str | None, typer.Option("--measure", hidden=True)] = None,
) -> None:
    """Compares weightings and per-task gradients with TorchJD."""
    torch.set_num_threads(threads)
    if measured is not None:
        print(measure(**json.loads(measured)))
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes whose memory is measured
    parts = part or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        raise typer.BadParameter(
            f"expected parts out of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}"
        )
    found = run(parts, quick)
    for table in tables(found):
        Console().print(table)
    if to_json is not None:
        to_json.write_text(json.dumps({"threads": threads, **found}, indent=1))


if __name__ == "__main__":
    typer.run(main)
