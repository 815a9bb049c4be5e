"""UMTL beside MAML on curves of three families, at equal size, steps and tries.

    python -m benchmarks.mixture

For each seed both try the same number of settings, each for the same number of outer steps on the
same episodes, and the setting and the look with the lowest validation error stand; MAML's network
is as wide as UMTL has parameters in all. The ablations take the setting that UMTL chose. Test
episodes are read once for each row.
"""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.sharing import interval, is_looked_at, read_rows, write_rows
from raymtl.config import Experiment
from raymtl.data import Split
from raymtl.data.episodes import build_episodes, on_device
from raymtl.evaluation.evaluate import evaluate
from raymtl.evaluation.scores import validation_scores
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, over_episodes
from raymtl.step.meta_gradient import meta_gradient
from raymtl.step.workers import Workers
from raymtl.types import DivergedError, Params, Spec

MAML, UMTL = "maml", "umtl"
LEARNERS: dict[str, dict[str, Any]] = {
    MAML: {"learner.name": "maml", "learner.learn_inner_lr": True},
    UMTL: {"learner.name": "umtl"},
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "umtl, no reconstruction": {"learner.reconstruction": 0.0},
    "umtl, attends to the batch": {"learner.attends": "batch"},
    "umtl, one phase": {"learner.first_phase": 0},
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"train.lr": 0.003, "learner.inner_lr": 0.02},
    {"train.lr": 0.006, "learner.inner_lr": 0.05},
)


class Protocol(Spec):
    """All that a result depends on beside seed and row."""

    steps: int = 1500
    meta_batch: int = 16
    looks: int = 5
    """At the validation error during training."""
    val_episodes: int = 300
    test_episodes: int = 1000
    probe_episodes: int = 5000
    """Validation episodes whose embeddings the probe learns from."""
    hidden: tuple[int, ...] = (40, 40)
    """Of UMTL's network; MAML's is wider."""
    settings: int = len(SETTINGS)


class Try(NamedTuple):
    """The best of one training run by its validation error."""

    val: float
    step: int
    params: dict[str, Tensor]
    setting: int


def experiment(protocol: Protocol, seed: int, values: Mapping[str, Any]) -> Experiment:
    """The mixture with a network of UMTL's width."""
    base = {
        "data.name": "mixture",
        "encoder.name": "mlp",
        "encoder.hidden": list(protocol.hidden),
        "train.meta_batch": protocol.meta_batch,
        "train.steps": protocol.steps,
        "evaluate.val_episodes": protocol.val_episodes,
        "evaluate.test_episodes": protocol.test_episodes,
        "seed": seed,
    }
    return Experiment().override(base | dict(values))


def num_parameters(chosen: Experiment) -> int:
    """Everything that is learned, the learner's own included."""
    return sum(value.numel() for value in chosen.build().init_params().values())


def widened(protocol: Protocol, seed: int, like: int) -> dict[str, Any]:
    """MAML with two layers of the width that brings it closest to `like` parameters."""

    def of(width: int) -> dict[str, Any]:
        return LEARNERS[MAML] | {"encoder.hidden": [width, width]}

    estimate = math.isqrt(like)
    widths = range(max(1, estimate - 10), estimate + 3)
    best = min(
        widths, key=lambda width: abs(num_parameters(experiment(protocol, seed, of(width))) - like)
    )
    return of(best)


def train(chosen: Experiment, setting: int, protocol: Protocol) -> Try:
    """Adam with a rate that falls to 0 along half a cosine, as `raymtl train` has it."""
    algorithm = chosen.build()
    params = algorithm.init_params()
    optimizer = torch.optim.Adam(list(params.values()))
    best = Try(math.inf, 0, {}, setting)
    for step in range(protocol.steps):
        indices = range(protocol.meta_batch)
        episodes, _ = build_episodes(
            chosen.data, {}, seed=chosen.seed, split="train", step=step, indices=indices
        )
        try:
            meta = meta_gradient(algorithm, params, on_device(episodes, "cpu"), step=step)
        except DivergedError:
            return best  # of the looks before, none of which may be: then another setting stands
        optimizer.zero_grad()
        moving = {
            name: value for name, value in params.items() if algorithm.learner.moves(step, name)
        }
        for name, value in moving.items():
            value.grad = meta.grads[name]
        torch.nn.utils.clip_grad_norm_(moving.values(), chosen.train.clip_norm or math.inf)
        optimizer.param_groups[0]["lr"] = (
            chosen.train.lr * (1 + math.cos(math.pi * step / protocol.steps)) / 2
        )
        optimizer.step()
        if is_looked_at(step, protocol.steps, protocol.looks):
            val = validation_error(chosen, algorithm, params)
            if val < best.val:
                copies = {name: value.detach().clone() for name, value in params.items()}
                best = Try(val, step + 1, copies, setting)
    return best


@torch.no_grad()
def validation_error(chosen: Experiment, algorithm: Algorithm, params: Params) -> float:
    """The mean squared error of the episodes for validation."""
    scores = validation_scores(chosen, algorithm, params, {}, ExecutionConfig(), Workers())
    error = scores["val.y.mse"]
    assert error is not None
    return error


@torch.no_grad()
def embeddings(
    chosen: Experiment, algorithm: Algorithm, params: Params, split: Split, count: int
) -> tuple[Tensor, list[str]]:
    """[count, D], and the family of each episode."""
    episodes, families = build_episodes(
        chosen.data, {}, seed=chosen.seed, split=split, step=0, indices=range(count)
    )
    z = over_episodes(
        lambda episode: algorithm.learner.embed(algorithm.model, params, episode.support),
        on_device(episodes, "cpu"),
        ExecutionConfig(),
    )
    return z.flatten(0, 1), families


def probed(chosen: Experiment, algorithm: Algorithm, params: Params, protocol: Protocol) -> float:
    """Share of test episodes whose family logistic regression tells from the embedding."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=100, max_iter=5000))
    probe.fit(*embeddings(chosen, algorithm, params, "val", protocol.probe_episodes))
    return float(
        probe.score(*embeddings(chosen, algorithm, params, "test", protocol.test_episodes))
    )


def related(chosen: Experiment, algorithm: Algorithm, params: Params) -> dict[str, float]:
    """Mean learned relation of test episodes of the same family, and of different ones."""
    z, families = embeddings(chosen, algorithm, params, "test", 200)
    relations = algorithm.learner.relations(params, z)
    assert relations is not None
    same = torch.tensor([[a == b for b in families] for a in families])
    others = ~torch.eye(len(z), dtype=torch.bool)
    return {
        "within": float(relations[same & others].mean()),
        "between": float(relations[~same].mean()),
    }


def result(
    row: str, values: Mapping[str, Any], seed: int, tries: Sequence[Try], protocol: Protocol
) -> dict[str, Any]:
    """The row of the JSON file: the best of the tries on the test episodes."""
    best = min(tries, key=lambda found: found.val)
    chosen = experiment(protocol, seed, dict(values) | SETTINGS[best.setting])
    algorithm = chosen.build()
    scores = evaluate(chosen, algorithm, best.params, {}).metrics
    found = {
        "row": row,
        "seed": seed,
        "mse": scores["tasks"]["y"]["mse"]["after"]["mean"],
        "along": scores["curve"]["y.mse"]["mean"],
        "val": best.val,
        "step": best.step,
        "setting": SETTINGS[best.setting],
        "tries": [found.val for found in tries],
        "hidden": chosen.encoder.model_dump()["hidden"],
        "num_parameters": num_parameters(chosen),
    }
    if chosen.learner.name == UMTL:
        found |= {"probe": probed(chosen, algorithm, best.params, protocol)}
        found |= {"untrained": probed(chosen, algorithm, algorithm.init_params(), protocol)}
        found |= related(chosen, algorithm, best.params)
    return found


def of_seed(learner: str, seed: int, protocol: Protocol) -> list[dict[str, Any]]:
    """The rows of one learner, UMTL's with its ablations."""
    start = time.perf_counter()
    values = LEARNERS[learner]
    if learner == MAML:
        values = widened(protocol, seed, num_parameters(experiment(protocol, seed, LEARNERS[UMTL])))
    tried = range(protocol.settings)
    tries = [train(experiment(protocol, seed, values | SETTINGS[i]), i, protocol) for i in tried]
    rows = [result(learner, values, seed, tries, protocol)]
    if learner == UMTL:
        best = min(tries, key=lambda found: found.val).setting
        for name, changed in ABLATIONS.items():
            ablated = values | changed
            again = train(experiment(protocol, seed, ablated | SETTINGS[best]), best, protocol)
            if again.params:
                rows.append(result(name, ablated, seed, [again], protocol))
            else:
                print(f"{name}, seed {seed}: diverged", flush=True)
    print(f"{learner}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each row, means over seeds with 95 % intervals."""

    def told(name: str, key: str, digits: int, scale: float = 1.0) -> str:
        values = [scale * row[key] for row in rows if row["row"] == name and key in row]
        if not values:
            return "-"
        mean, half = interval(values)
        return f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")

    lines = [
        "| | parameters | test MSE | probe, % | probe untrained, % | relation within a family | "
        "between families |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (MAML, UMTL, *ABLATIONS):
        count = [row["num_parameters"] for row in rows if row["row"] == name]
        if count:
            probes = (told(name, "probe", 1, 100), told(name, "untrained", 1, 100))
            cells = (
                told(name, "mse", 3),
                *probes,
                told(name, "within", 2),
                told(name, "between", 2),
            )
            lines.append(f"| {name} | {count[0]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


QUICK = {
    "steps": 10,
    "looks": 1,
    "val_episodes": 20,
    "test_episodes": 20,
    "probe_episodes": 60,
    "settings": 1,
}
"""What a smoke run changes of the protocol."""


def run(
    protocol: Protocol, seeds: int, processes: int, json_path: Path | None
) -> list[dict[str, Any]]:
    """The rows of all learners and seeds; what the JSON file holds is not run again."""
    rows = read_rows(json_path, protocol)
    done = {(row["row"], row["seed"]) for row in rows}
    every = itertools.product(range(seeds), LEARNERS)
    todo = [(learner, seed) for seed, learner in every if (learner, seed) not in done]
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for future in as_completed([pool.submit(of_seed, *key, protocol) for key in todo]):
            rows += future.result()
            write_rows(json_path, protocol, rows)
    return rows


def main(
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Results; what it holds is not run again.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    processes: Annotated[int, typer.Option(min=1)] = 2,
    steps: Annotated[int, typer.Option(help="Outer steps of every try.", min=1)] = Protocol().steps,
    quick: Annotated[
        bool, typer.Option("--quick", help="A smoke run; its numbers say nothing.")
    ] = False,
) -> None:
    """Prints the test error of MAML, of UMTL and of UMTL without its parts, and what a probe finds
    in embeddings.
    """
    protocol = Protocol(steps=steps)
    if quick:
        protocol, seeds = Protocol.model_validate(QUICK), 1
    rows = run(protocol, seeds, processes, json_path)
    Console(stderr=True).print(
        f"{seeds} seeds, 95 % intervals; {protocol.settings} settings for maml and umtl each"
    )
    print(markdown(sorted(rows, key=lambda row: row["seed"])), end="")


if __name__ == "__main__":
    typer.run(main)
