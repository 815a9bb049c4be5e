"""CIFAR-100 as 20 tasks of 5 classes, each with its own pictures: `python -m benchmarks.cifar100`.

Every sharing architecture with equal weights, and weightings on hard sharing, beside single tasks,
one network each: all for the same number of steps on the same pictures, with the same learning
rate. Of a few looks at the validation pictures, which are held out of the training set, the best
stands; the test pictures are read once for it alone.

`--protocol cpu` fits two cores and 20 minutes, with a network of three small convolutions and two
or three passes over the training pictures: it compares methods, its accuracies are those of a
beginning. `--protocol gpu` is a ResNet-18 for 150 passes with augmentation, on one GPU; its goal is
a mean test accuracy above 77.5 %.
"""

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import typer
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from benchmarks.sharing import (
    ARCHITECTURES,
    SINGLE,
    Stopwatch,
    interval,
    is_looked_at,
    read_rows,
    run_cells,
    set_rate,
    summarise,
    write_rows,
)
from raymtl.config import Experiment
from raymtl.data import Arrays, Split
from raymtl.data.episodes import build_episodes, on_device
from raymtl.data.formats.cifar100 import COARSE
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import meta_gradient, update_after_step
from raymtl.types import Batch, DivergedError, Params, Spec

DATASET = "cifar100"
WEIGHTINGS = ("uncertainty", "dwa", "famo", "pcgrad", "cagrad", "mgda", "nash_mtl", "imtl_g")
ON_HARD = {f"hard, {name}": name for name in WEIGHTINGS}
METHODS = (SINGLE, *ARCHITECTURES, *ON_HARD)
DEAREST = ("cross_stitch", "attention", *reversed(ON_HARD), "ple")
"""What takes longest is begun first, so that no process is left alone with it."""


class Protocol(Spec):
    """All that a result depends on beside seed and method."""

    name: Literal["cpu", "gpu"] = "cpu"
    encoder: Mapping[str, Any] = {"encoder.name": "conv", "encoder.channels": [16, 32, 64]}
    steps: PositiveInt = 320
    pictures: PositiveInt = 16
    """Of each task, a step."""
    held_out: PositiveInt = 50
    """Pictures of each class for validation."""
    looks: PositiveInt = 4
    """At the validation pictures, equally far apart."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """`sgd` has Nesterov's momentum of 0.9."""
    lr: PositiveFloat = 0.004
    """Falls to 0 along half a cosine."""
    weight_decay: float = 0.0
    clip_norm: PositiveFloat = 10.0
    augment: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    tested: PositiveInt = 20
    """Pictures of each task that are predicted at once where nothing is learned."""
    most_seconds: PositiveFloat | None = 550.0
    """Of a core; what would take longer, judged by its first steps, is not run."""


PROTOCOLS = {
    "cpu": Protocol(),
    "gpu": Protocol(
        name="gpu",
        encoder={"encoder.name": "resnet18"},
        steps=21_000,
        looks=15,
        optimizer="sgd",
        lr=0.05,
        weight_decay=5e-4,
        augment=True,
        precision="bfloat16",
        tested=50,
        most_seconds=None,
    ),
}


def scaled(protocol: Protocol, scale: float) -> Protocol:
    """With a multiple of the steps, and no more looks than there are steps."""
    steps = max(2, round(protocol.steps * scale))
    return protocol.model_copy(update={"steps": steps, "looks": min(protocol.looks, steps)})


def experiment(method: str, seed: int, protocol: Protocol) -> Experiment:
    """The configuration of a row: plain multi-task learning."""
    values: dict[str, Any] = {
        "seed": seed,
        "data.name": "cifar100",
        "data.episodes": "superclasses",
        "data.split_seed": seed,
        "data.held_out": protocol.held_out,
        "data.queries": protocol.pictures,
        "data.augment": protocol.augment,
        "learner.inner_steps": 0,
        "weighting.name": ON_HARD.get(method, "equal"),
        **protocol.encoder,
    }
    if method == SINGLE:
        values |= {"sharing.name": "soft", "sharing.strength": 0.0}
    elif method in ARCHITECTURES:
        values |= {"sharing.name": method}
    return Experiment().override(values)


def whole(arrays: Arrays, split: Split, at_once: int) -> list[Batch]:
    """All pictures of a split, so many of each task in a batch."""
    parts = []
    members = {
        name: arrays[split][arrays["coarse"] == number] for number, name in enumerate(COARSE)
    }
    rows = {name: own.reshape(-1) for name, own in members.items()}
    labels = {name: np.repeat(np.arange(len(own)), own.shape[1]) for name, own in members.items()}
    for start in range(0, len(rows[COARSE[0]]), at_once):
        some = slice(start, start + at_once)
        inputs = {
            name: torch.from_numpy(arrays["pictures"][own[some]]) for name, own in rows.items()
        }
        parts.append(
            Batch(inputs, {name: torch.from_numpy(own[some]) for name, own in labels.items()}, {})
        )
    return parts


@torch.no_grad()
def errors(
    algorithm: Algorithm, params: Params, parts: Sequence[Batch], execution: ExecutionConfig
) -> dict[str, float]:
    """Share of pictures of each task that are taken for another of its classes."""
    device = next(iter(params.values())).device
    wrong = dict.fromkeys(COARSE, 0)
    for part in parts:
        batch = on_device(part, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=execution.precision == "bfloat16"):
            predictions = algorithm.predict(params, batch.inputs)
        for name, target in batch.targets.items():
            wrong[name] += int((predictions[name].argmax(-1) != target).sum())
    number = {name: sum(len(part.targets[name]) for part in parts) for name in COARSE}
    return {name: wrong[name] / number[name] for name in COARSE}


def optimiser(
    algorithm: Algorithm, params: Mapping[str, Tensor], protocol: Protocol
) -> torch.optim.Optimizer:
    """What is not the model's, such as a weighting's own parameters, does not decay."""
    groups: list[dict[str, Any]] = []
    for name, value in params.items():
        prefix, first = name.split(".")[:2]
        of_model = prefix == "model"
        if of_model:
            scale = algorithm.model.lr_scale.get(first, 1.0)
        else:
            scale = 1.0
        groups.append(
            {
                "params": [value],
                "lr_scale": scale,
                "weight_decay": protocol.weight_decay if of_model else 0.0,
            }
        )
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=protocol.lr, momentum=0.9, nesterov=True)
    return torch.optim.Adam(groups, lr=protocol.lr)


class Look(NamedTuple):
    """Validation errors of each task after a step, and the parameters that they are of."""

    errors: dict[str, float]
    params: dict[str, Tensor]
    step: int

    @property
    def mean(self) -> float:
        """The mean error over the tasks."""
        return sum(self.errors.values()) / len(self.errors)


def better(best: Look | None, look: Look) -> Look:
    """The look with the lower mean error, the first of two alike."""
    if best is None or look.mean < best.mean:
        return look
    return best


def copied(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters that further steps do not move."""
    return {name: value.detach().clone() for name, value in params.items()}


def train(
    chosen: Experiment, arrays: Arrays, protocol: Protocol, device: torch.device
) -> tuple[dict[str, float], dict[str, float], int]:
    """Validation and test errors of each task at the best look by the mean, and its step.

    Raises TimeoutError as soon as the first steps say that all of them will take too long, and
    DivergedError where that happens before the first look.
    """
    algorithm = chosen.build()
    params = algorithm.init_params(device)
    optimizer = optimiser(algorithm, params, protocol)
    execution = ExecutionConfig("loop", precision=protocol.precision)
    validation = whole(arrays, "val", protocol.tested)
    best: Look | None = None
    stopwatch = Stopwatch(protocol.steps, protocol.most_seconds or math.inf, time.process_time)
    for step in range(protocol.steps):
        stopwatch.before(step)
        built, _ = build_episodes(
            chosen.data, arrays, seed=chosen.seed, split="train", step=step, indices=[0]
        )
        episodes = on_device(built, device)
        try:
            meta = meta_gradient(algorithm, params, episodes, execution=execution, step=step)
        except DivergedError:
            if best is None:
                raise
            break  # as it stood before
        for name, value in params.items():
            value.grad = meta.grads[name]
        torch.nn.utils.clip_grad_norm_(params.values(), protocol.clip_norm)
        set_rate(optimizer, protocol.lr, step, protocol.steps)
        optimizer.step()
        if chosen.weighting.needs_post_step_losses:
            update_after_step(algorithm, params, episodes, meta, execution=execution)
        if is_looked_at(step, protocol.steps, protocol.looks):
            found = errors(algorithm, params, validation, execution)
            best = better(best, Look(found, copied(params), step + 1))
    assert best is not None
    testing = whole(arrays, "test", protocol.tested)
    return best.errors, errors(algorithm, best.params, testing, execution), best.step


def cell(seed: int, method: str, protocol: Protocol, device: str) -> dict[str, Any]:
    """One seed and method: its row of the JSON file."""
    row: dict[str, Any] = {"dataset": DATASET, "seed": seed, "method": method}
    chosen = experiment(method, seed, protocol)
    arrays = chosen.data.load()
    start, core = time.perf_counter(), time.process_time()
    try:
        val, test, step = train(chosen, arrays, protocol, torch.device(device))
    except TimeoutError as error:
        return row | {"not_run": f"too slow: {error}"}
    except DivergedError as error:
        return row | {"not_run": f"diverged: {error}"}
    return row | {
        "test": test,
        "val": val,
        "step": step,
        "num_parameters": sum(value.numel() for value in chosen.build().init_params().values()),
        "seconds": time.perf_counter() - start,
        "core_seconds": time.process_time() - core,
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each method, most accurate first; after ± half the 95 % interval over seeds."""

    def told(values: Sequence[float], digits: int) -> str:
        if not values:
            return "-"
        mean, half = interval(values)
        return f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")

    def accuracies(method: str, part: str) -> list[float]:
        own = [list(row[part].values()) for row in rows if row["method"] == method and part in row]
        return [100 * (1 - float(np.mean(errors_of_tasks))) for errors_of_tasks in own]

    lines = [
        "| method | test accuracy, % | validation, % | delta_p against single, % | mean rank | "
        "parameters | core s |",
        "|---|---|---|---|---|---|---|",
    ]
    summaries = {summary.method: summary for summary in summarise(rows)}
    ran = [method for method in summaries if accuracies(method, "test")]
    for method in sorted(ran, key=lambda name: -float(np.mean(accuracies(name, "test")))):
        own = [row for row in rows if row["method"] == method and "test" in row]
        cells = [
            told(accuracies(method, "test"), 2),
            told(accuracies(method, "val"), 2),
            told(summaries[method].delta_p, 1),
            told(summaries[method].ranks, 2),
            str(own[0]["num_parameters"]),
            f"{np.mean([row['core_seconds'] for row in own]):.0f}",
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    reasons = {row["method"]: row["not_run"] for row in rows if "not_run" in row}
    return (
        "\n".join(
            [*lines, "", *(f"- {method}: {reason}" for method, reason in reasons.items())]
        ).rstrip()
        + "\n"
    )


class Plan(NamedTuple):
    """What is run, and by what."""

    protocol: Protocol
    device: str
    methods: Sequence[str]
    seeds: int
    processes: int
    json_path: Path | None


def run(plan: Plan) -> list[dict[str, Any]]:
    """The rows of all seeds and methods; what the JSON file holds is not run again."""
    rows = read_rows(plan.json_path, plan.protocol)
    done = {(row["seed"], row["method"]) for row in rows}
    wanted = [(seed, method) for seed in range(plan.seeds) for method in plan.methods]
    todo = [key for key in wanted if key not in done]
    todo.sort(key=lambda key: DEAREST.index(key[1]) if key[1] in DEAREST else len(DEAREST))
    jobs = [(*key, plan.protocol, plan.device) for key in todo]

    def describe(row: Mapping[str, Any]) -> str:
        return f"seed {row['seed']}: {row['method']}"

    for row in run_cells(cell, jobs, plan.processes, describe):
        rows.append(row)
        write_rows(plan.json_path, plan.protocol, rows)
        if not sys.stderr.isatty():
            said = row.get("not_run") or f"{row['core_seconds']:.0f} s of a core"
            print(f"{row['method']}, seed {row['seed']}: {said}", flush=True)
    own = [row for row in rows if (row["seed"], row["method"]) in set(wanted)]
    return sorted(own, key=lambda row: wanted.index((row["seed"], row["method"])))


def check_choices(protocol: str, methods: Sequence[str]) -> None:
    """Raises typer.BadParameter for a protocol or method that there is not."""
    for name, given, known in (("protocol", [protocol], PROTOCOLS), ("method", methods, METHODS)):
        for one in given:
            if one not in known:
                raise typer.BadParameter(
                    f"--{name}: expected one of {', '.join(known)}, got '{one}'."
                )
    if protocol == "gpu" and not torch.cuda.is_available():
        raise typer.BadParameter("--protocol: expected cpu where there is no GPU, got gpu.")


def main(  # noqa: PLR0913  each is an option of the command
    protocol: Annotated[
        str, typer.Option(help="cpu (20 minutes on two cores) or gpu (hours).")
    ] = "cpu",
    data: Annotated[
        Path | None, typer.Option(help="The folder with cifar-100-python; else $RAYMTL_DATA.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Results; what it holds is not run again.")
    ] = None,
    methods: Annotated[
        list[str], typer.Option("--method", help="Some of the rows; all by default.")
    ] = list(METHODS),  # noqa: B006
    seeds: Annotated[int, typer.Option(help="Of split, initialisation and pictures.", min=1)] = 1,
    processes: Annotated[
        int | None, typer.Option(help="2 on a CPU, 1 on a GPU by default.", min=1)
    ] = None,
    scale: Annotated[
        float, typer.Option(help="Multiplies the steps; under 1 the numbers say nothing.")
    ] = 1.0,
) -> None:
    """Prints the test accuracy of architectures and weightings beside that of single tasks, at an
    equal budget.
    """
    check_choices(protocol, methods)
    if data:
        os.environ["RAYMTL_DATA"] = str(data.absolute())
    chosen = scaled(PROTOCOLS[protocol], scale)
    device = "cuda" if protocol == "gpu" else "cpu"
    number = processes or (1 if device == "cuda" else 2)
    print(markdown(run(Plan(chosen, device, methods, seeds, number, json_path))), end="")


if __name__ == "__main__":
    typer.run(main)
