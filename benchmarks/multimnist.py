"""Two overlapping digits on a picture, every architecture beside single tasks.

    python -m benchmarks.multimnist

First every sharing architecture, and the single tasks, one network each, train the same small
number of steps on the same batches, as often as there are learning rates; what stands is the rate
with the highest accuracy on the validation pairs. Then the architecture that is best there trains
long, beside hard sharing, hard sharing with a wider trunk and the single tasks, each with the rate
it was found to like. The test pairs are looked at once for each row of the tables, and nothing is
chosen by them. The number of parameters is in every row, for architectures differ in it.
"""

import json
import math
import os
import tempfile
import time
from collections.abc import Mapping, MutableMapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

import numpy as np
import torch
import typer
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.sharing import ARCHITECTURES, SINGLE
from raymtl.config import Experiment
from raymtl.config.sections import Evaluate, Train
from raymtl.data import MultiMNIST, Split
from raymtl.data.episodes import on_device
from raymtl.data.sources.multimnist import PAIRS
from raymtl.encoders import ConvSpec, EncoderSpec, LeNetSpec, ResNet18Spec
from raymtl.evaluation.evaluate import load_model
from raymtl.evaluation.relative import delta_m
from raymtl.learners import MAML
from raymtl.sharing import BranchingSpec, HierarchicalSpec, SoftSpec
from raymtl.sharing.base import SharingSpecBase
from raymtl.step.execution import Precision
from raymtl.tasks import metric_sums, metric_values
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import DivergedError, Episode, Spec, UserError
from raymtl.weighting import EqualSpec

HARD, WIDE = "hard", "hard, wider"
Pairs = Literal["fixed", "fresh"]
Size = Literal["cpu", "resnet"]
SHORT_METHODS = (SINGLE, *ARCHITECTURES)
AT_ONCE = 500  # pairs that are scored together
TELL_EVERY = 20  # steps between looks at a training
PUBLISHED = {"fixed": (0.9726, 0.9590)}
"""MGDA's accuracies, left and right, on 60,000 fixed pairs (Sener & Koltun, 2018,
arXiv:1810.04650).
"""

SHARING: dict[str, SharingSpecBase] = {
    **{name: member() for name, member in ARCHITECTURES.items()},
    SINGLE: SoftSpec(strength=0),  # a network for each task, which nothing ties
    WIDE: ARCHITECTURES[HARD](),
    # Without a tree and without levels these two are hard sharing.
    "branching": BranchingSpec(tree={"right": {"follows": "left", "stages": 2}}),
    "hierarchical": HierarchicalSpec(levels={"left": 2}),
}


class Budget(Spec):
    """How long a try trains."""

    steps: PositiveInt
    batch: PositiveInt
    """Pairs in a step."""


class Protocol(Spec):
    """All that a result depends on."""

    pairs: Pairs
    encoder: EncoderSpec
    narrower: tuple[EncoderSpec, ...] = ()
    """What an architecture has in its place that has too many parameters with it, the first that
    fits.
    """
    wider: EncoderSpec | None
    """Of the hard sharing that shall not stand back for its size."""
    most_parameters: PositiveInt | None = None
    rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """Learning rates that every method tries; they fall to 0 along half a cosine."""
    precision: Precision = "float32"
    short: Budget
    long: Budget
    seed: NonNegativeInt = 0


FIXED = Protocol(
    pairs="fixed",
    encoder=LeNetSpec(maps=(10, 20), hidden=(50,)),
    wider=LeNetSpec(maps=(20, 40), hidden=(100,)),
    rates=(0.002, 0.004),
    short=Budget(steps=400, batch=64),
    long=Budget(steps=4000, batch=128),
)
FRESH = Protocol(
    pairs="fresh",
    encoder=ConvSpec(channels=(32, 64, 128)),
    narrower=(
        ConvSpec(channels=(24, 48, 96)),
        ConvSpec(channels=(16, 32, 64)),
        ConvSpec(channels=(12, 24, 48)),
    ),
    wider=ConvSpec(channels=(48, 96, 192)),
    most_parameters=500_000,
    rates=(0.002, 0.004),
    precision="bfloat16",
    short=Budget(steps=400, batch=64),
    long=Budget(steps=6000, batch=128),
)
RESNET: dict[str, Any] = {
    "encoder": ResNet18Spec(),
    "narrower": (),
    "wider": None,
    "most_parameters": None,
    "precision": "bfloat16",
    "rates": (0.0005, 0.002),
    "short": Budget(steps=2_000, batch=256),
    "long": Budget(steps=30_000, batch=256),
}
"""What the protocol for a GPU has other than those for two CPU cores."""


def protocol_of(pairs: Pairs, size: Size, quick: bool) -> Protocol:
    """The protocol; `quick` leaves it two steps of four pairs and one rate."""
    if pairs == "fixed":
        chosen = FIXED
    else:
        chosen = FRESH
    if size == "resnet":
        chosen = chosen.model_copy(update=RESNET)
    if quick:
        least = Budget(steps=2, batch=4)
        chosen = chosen.model_copy(
            update={"rates": chosen.rates[:1], "short": least, "long": least}
        )
    return chosen


class Try(NamedTuple):
    """One training: a method with one of the rates."""

    method: str
    rate: float
    long: bool

    def experiment(
        self, protocol: Protocol, encoder: EncoderSpec, device: str = "cpu"
    ) -> Experiment:
        """Its configuration."""
        if self.long:
            budget = protocol.long
        else:
            budget = protocol.short
        return Experiment(
            name="multimnist",
            seed=protocol.seed,
            data=MultiMNIST(pairs=protocol.pairs, queries=budget.batch),
            encoder=encoder,
            sharing=SHARING[self.method],
            weighting=EqualSpec(),
            learner=MAML(inner_steps=0),
            train=Train(
                steps=budget.steps,
                meta_batch=1,
                lr=self.rate,
                # of all parameters together, and single tasks are to know nothing of each other
                clip_norm=None,
                precision=protocol.precision,
                device=device,
                task_axis="loop",
                eval_every=budget.steps,
            ),
            evaluate=Evaluate(val_episodes=2),  # the record's; what counts is scored on all pairs
        )


@cache
def encoder_of(protocol: Protocol, method: str) -> tuple[EncoderSpec, int]:
    """The widest encoder with which the method has not too many parameters, and how many it has.

    Raises UserError where there is none.
    """
    candidates = (protocol.encoder, *protocol.narrower)
    if method == WIDE and protocol.wider:
        candidates = (protocol.wider,)
    for encoder in candidates:
        params = (
            Try(method, protocol.rates[0], False)
            .experiment(protocol, encoder)
            .build()
            .init_params()
        )
        number = sum(value.numel() for value in params.values())
        if protocol.most_parameters is None or number <= protocol.most_parameters:
            return encoder, number
    raise UserError(
        f"{method}: expected at most {protocol.most_parameters:,} parameters, got {number:,}."
    )


def accuracies(folder: Path, split: Split, device: str) -> dict[str, float]:
    """The share that is right of all fixed pairs of a split, of each task, by the model in a
    folder.
    """
    experiment, algorithm, params = load_model(folder)
    params = {name: value.to(device) for name, value in params.items()}
    algorithm.model.to(device)
    source = experiment.data
    assert isinstance(source, MultiMNIST)
    arrays = source.load()
    sums: torch.Tensor | float = 0.0
    for start in range(0, len(arrays[split]), AT_ONCE):
        batch = source.batch(arrays, arrays[split][start : start + AT_ONCE])
        seen = on_device(Episode(batch, batch), device).query
        with (
            torch.no_grad(),
            torch.autocast(
                device, torch.bfloat16, enabled=experiment.train.precision == "bfloat16"
            ),
        ):
            predictions = algorithm.predict(params, seen.inputs)
        sums = sums + metric_sums(algorithm.tasks, predictions, seen)
    assert isinstance(sums, torch.Tensor)
    counts = sums.new_full((len(algorithm.tasks),), len(arrays[split]))
    scores = metric_values(algorithm.tasks, sums, counts)
    return {name: float(scores[f"{name}.accuracy"]) for name in source.task_names}


def train(
    tried: Try, protocol: Protocol, folder: Path, device: str, steps_done: MutableMapping[Try, int]
) -> dict[str, Any]:
    """Trains a try, leaves its model in the folder and scores it on the validation pairs: its row
    of the JSON file.
    """
    encoder, number = encoder_of(protocol, tried.method)
    experiment = tried.experiment(protocol, encoder, device)
    start, cpu = time.perf_counter(), time.process_time()
    row: dict[str, Any] = {
        **tried._asdict(),
        "steps": experiment.train.steps,
        "encoder": encoder.model_dump(mode="json"),
        "num_parameters": number,
    }

    def observe(numbers: Mapping[str, float | None]) -> None:
        step = int(numbers["step"] or 0)
        if step % TELL_EVERY == 0 or step == experiment.train.steps:
            steps_done[tried] = step

    folder.mkdir(parents=True)
    arrays = experiment.data.load()
    context = TrainContext(lambda scores: None, observe, device=torch.device(device))
    try:
        train_loop(experiment, arrays, local_batches(experiment, arrays), context, folder)
    except DivergedError as error:
        return row | {"val": None, "diverged": str(error)}
    row["val"] = accuracies(folder, "val", device)
    return row | {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}


def mean(scores: Mapping[str, float] | None) -> float:
    """Over the tasks; of a diverged try less than of any other."""
    if scores is None:
        return -math.inf
    return float(np.mean(list(scores.values())))


def best_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The row of each method that is best on the validation pairs, in the order of the methods."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return [
        max((row for row in rows if row["method"] == m), key=lambda row: mean(row["val"]))
        for m in methods
    ]


def long_tries(short: Sequence[Mapping[str, Any]], protocol: Protocol) -> list[Try]:
    """The best architecture by its short try, hard sharing, the same wider, and single tasks, at
    the rates they like.

    Where hard sharing itself is best, the next best one too.
    """
    rates = {row["method"]: row["rate"] for row in short}
    ranked = sorted(
        (row for row in short if row["method"] != SINGLE), key=lambda row: -mean(row["val"])
    )
    best = next((row["method"] for row in ranked if row["method"] != HARD), None)
    tries = []
    if best is not None:  # the slowest first
        tries.append(Try(best, rates[best], True))
    if SINGLE in rates:
        tries.append(Try(SINGLE, rates[SINGLE], True))
    if protocol.wider:
        tries.append(Try(WIDE, rates[HARD], True))
    if HARD in rates:
        tries.append(Try(HARD, rates[HARD], True))
    return tries


class Pool:
    """Processes of one thread each, and a bar of the steps that they have done."""

    def __init__(self, protocol: Protocol, processes: int, device: str, folder: Path) -> None:
        self.protocol, self.device, self.folder = protocol, device, folder
        context = get_context("spawn")
        self.manager = context.Manager()
        self.workers = ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,))

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        self.workers.shutdown(cancel_futures=True)
        self.manager.shutdown()

    def run(self, tries: Sequence[Try], title: str) -> list[dict[str, Any]]:
        """The rows of these tries, with the test accuracy of each method's best."""
        steps_done = self.manager.dict()
        if tries[0].long:
            budget = self.protocol.long
        else:
            budget = self.protocol.short
        futures = [
            self.workers.submit(
                train, tried, self.protocol, self._model(tried), self.device, steps_done
            )
            for tried in tries
        ]
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task(title, total=len(tries) * budget.steps)
            left = set(futures)
            while left:
                done, left = wait(left, timeout=1)
                for future in done:
                    progress.console.print(_told(future.result()), highlight=False, soft_wrap=True)
                progress.update(bar, completed=sum(steps_done.values()))
        rows = [future.result() for future in futures]
        self._test(best_of(rows))
        return rows

    def _test(self, best: Sequence[dict[str, Any]]) -> None:
        """Adds the test accuracy to the rows that have not diverged."""
        scored = [row for row in best if row["val"] is not None]
        models = [self._model(Try(row["method"], row["rate"], row["long"])) for row in scored]
        scores = [self.workers.submit(accuracies, model, "test", self.device) for model in models]
        for row, score in zip(scored, scores, strict=True):
            row["test"] = score.result()

    def _model(self, tried: Try) -> Path:
        return self.folder / f"{'long' if tried.long else 'short'}-{tried.method}-{tried.rate}"


def _told(row: Mapping[str, Any]) -> str:
    """A line about a try that is done."""
    said = (
        row.get("diverged")
        or f"{100 * mean(row['val']):.2f} % of the validation pairs, {row['cpu_seconds']:.0f} s"
    )
    return f"{row['method']}, rate {row['rate']:g}: {said}"


def interval(accuracy: float, number: int) -> float:
    """Half the width of the 95 % interval of a share of so many pairs."""
    return 1.96 * math.sqrt(accuracy * (1 - accuracy) / number)


HEADER = [
    "method",
    "parameters",
    "rate",
    "val, %",
    "left, %",
    "right, %",
    "delta_m",
    "ms/step",
    "CPU s",
]


def table(rows: Sequence[Mapping[str, Any]], pairs: int) -> tuple[list[str], list[list[str]]]:
    """Header and rows, the best on the validation pairs first; `pairs` are those of the test."""
    alone = next((row for row in rows if row["method"] == SINGLE and row["val"] is not None), None)
    lines = []
    for row in sorted(rows, key=lambda row: -mean(row["val"])):
        number = f"{row['num_parameters']:,}"
        if row["val"] is None:
            lines.append([row["method"], number, "every rate diverged", *[""] * 6])
            continue
        test, change, shown_change = row["test"], None, "-"
        if alone:
            change = delta_m(_scores(test), _scores(alone["test"]))
        if change is not None:
            shown_change = f"{change:+.2f}"
        shares = [
            f"{100 * test[t]:.2f} ± {100 * interval(test[t], pairs):.2f}" for t in ("left", "right")
        ]
        ms_per_step = 1000 * row["cpu_seconds"] / row["steps"]
        lines.append(
            [
                row["method"],
                number,
                f"{row['rate']:g}",
                f"{100 * mean(row['val']):.2f}",
                *shares,
                shown_change,
                f"{ms_per_step:.0f}",
                f"{row['cpu_seconds']:.0f}",
            ]
        )
    return HEADER, lines


def _scores(test: Mapping[str, float]) -> dict[str, dict[str, tuple[float, bool]]]:
    return {task: {"accuracy": (value, True)} for task, value in test.items()}


def show(title: str, rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints a table, as Markdown where there is no terminal."""
    header, lines = table(rows, PAIRS["test"])
    if console.is_terminal:
        drawn = Table(*header, title=title)
        for line in lines:
            drawn.add_row(*line)
        console.print(drawn)
    else:
        print(
            "\n".join(
                [
                    f"{title}:",
                    "",
                    *(
                        "| " + " | ".join(line) + " |"
                        for line in [header, ["---"] * len(header), *lines]
                    ),
                    "",
                ]
            )
        )


def _write(path: Path | None, found: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(found, indent=1))


def check_choices(pairs: str, protocol: str, device: str, methods: Sequence[str]) -> None:
    """Raises typer.BadParameter for what there is not."""
    for name, value, known in (
        ("--pairs", pairs, ("fixed", "fresh")),
        ("--protocol", protocol, ("cpu", "resnet")),
        ("--device", device, ("auto", "cpu", "cuda")),
        *(("--method", method, SHORT_METHODS) for method in methods),
    ):
        if value not in known:
            raise typer.BadParameter(f"{name}: expected one of {', '.join(known)}, got '{value}'.")


class Plan(NamedTuple):
    """What is run, and by what."""

    protocol: Protocol
    methods: Sequence[str]
    device: str
    processes: int
    save: Path | None


class Found(NamedTuple):
    """The rows of the short and the long tries, and how long all of them took."""

    short: list[dict[str, Any]]
    long: list[dict[str, Any]]
    seconds: float

    @property
    def cpu_seconds(self) -> float:
        """Of all processes."""
        return float(sum(row.get("cpu_seconds", 0.0) for row in (*self.short, *self.long)))


def run(plan: Plan) -> Found:
    """The short tries, and the long ones that they choose; both are written as they are done."""
    start = time.perf_counter()
    chosen = plan.protocol
    with (
        tempfile.TemporaryDirectory() as folder,
        Pool(chosen, plan.processes, plan.device, Path(folder)) as pool,
    ):
        tries = [Try(m, rate, False) for rate in chosen.rates for m in plan.methods]
        short = pool.run(tries, "short tries")
        rows = {"protocol": chosen.model_dump(mode="json"), "device": plan.device, "short": short}
        _write(plan.save, rows)
        long = pool.run(long_tries(best_of(short), chosen), "long tries")
    found = Found(short, long, time.perf_counter() - start)
    times = {"seconds": found.seconds, "cpu_seconds": found.cpu_seconds}
    _write(plan.save, {**rows, "long": long, **times})
    return found


def show_found(found: Found, protocol: Protocol) -> None:
    """Prints the tables of the short and of the long tries, and what is published."""
    pairs = protocol.pairs
    console = Console()
    for title, rows, budget in (
        ("Short", best_of(found.short), protocol.short),
        ("Long", found.long, protocol.long),
    ):
        show(f"{title} tries, {budget.steps} steps of {budget.batch} {pairs} pairs", rows, console)
    if pairs in PUBLISHED:
        left, right = PUBLISHED[pairs]
        print(f"MGDA as published: {100 * left:.2f} left, {100 * right:.2f} right.")


def main(  # noqa: PLR0913  each is an option of the command
    pairs: Annotated[
        str, typer.Option(help="fixed: 60,000 for training; fresh: others in every step.")
    ] = "fixed",
    protocol: Annotated[str, typer.Option(help="cpu, or resnet for a GPU.")] = "cpu",
    data: Annotated[
        Path | None, typer.Option(help="The folder with MNIST/raw; else $RAYMTL_DATA.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    processes: Annotated[int, typer.Option(min=1, help="Of one thread each.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of initialisation and batches.")] = 0,
    methods: Annotated[list[str], typer.Option("--method")] = list(SHORT_METHODS),  # noqa: B006
    quick: Annotated[
        bool, typer.Option("--quick", help="Two steps a try; its numbers say nothing.")
    ] = False,
    save: Annotated[Path | None, typer.Option("--json", help="Where to write the rows.")] = None,
) -> None:
    """Prints the test accuracy of every sharing architecture and of single tasks at equal budget,
    then of the best.
    """
    check_choices(pairs, protocol, device, methods)
    if data:
        os.environ["RAYMTL_DATA"] = str(data.absolute())
    try:
        MultiMNIST().load()
    except UserError as error:
        raise typer.BadParameter(str(error)) from None
    chosen = protocol_of(cast(Pairs, pairs), cast(Size, protocol), quick)
    chosen = chosen.model_copy(update={"seed": seed})
    if device == "auto":
        if torch.cuda.is_available():
            device = "cuda"
        else:
            device = "cpu"
    found = run(Plan(chosen, methods, device, processes, save))
    show_found(found, chosen)
    minutes, of_cpu = found.seconds / 60, found.cpu_seconds / 60
    print(f"{minutes:.1f} minutes, {of_cpu:.1f} of them of CPU in {processes} processes.")


if __name__ == "__main__":
    typer.run(main)
