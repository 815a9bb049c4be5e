"""Feature, model and target transfer against learning from scratch, on a few examples a class.

    python -m benchmarks.transfer [--seeds 3] [--episodes 4] [--shots 2 10] [--json FILE]

For each seed a model is trained on the digits' three tasks (left, right, sum; plain multi-task
training on the training angles). The new task is which of 5 two-digit numbers a picture shows:
other labels, and numbers and drawings that the training never saw (`data.episodes: classes` of the
test split), upright. Every way learns from the same `shots` pictures of each class, a quarter of
which selects the step and one of two rates, and is scored on 100 others.

The accuracy of a seed is the mean over episodes; behind ± is half the width of the 95 % interval
over seeds, by Student's t, and the second column of each number of shots is the paired difference
to `scratch`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from benchmarks.hybrid import with_interval
from raymtl.adaptation.transfer import (
    Examples,
    FeatureTransfer,
    ModelTransfer,
    Optimiser,
    TargetTransfer,
    Teacher,
    Transfer,
    Trunk,
)
from raymtl.config import Experiment
from raymtl.data import Digits
from raymtl.data.base import Arrays
from raymtl.data.episodes import build_episodes, on_device
from raymtl.encoders import ConvSpec
from raymtl.storage.formats import load_params
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import Episode

WAYS, QUERIES = 5, 20
RATES = (0.001, 0.01)
SOURCE = {
    "encoder.name": "mlp",
    "encoder.hidden": [192, 64],
    "learner.inner_steps": 0,
    "data.queries": 4,
    "train.lr": 0.005,
    "train.task_axis": "vmap",
    "evaluate.val_episodes": 8,
}
STUDENT = ConvSpec(channels=(16, 32))


def teacher_of(chosen: Experiment, arrays: Arrays, *, trained: bool) -> Teacher:
    """The source model as a teacher, trained or as it was initialised."""
    algorithm = chosen.build()
    if trained:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            train_loop(
                chosen,
                arrays,
                local_batches(chosen, arrays),
                TrainContext(lambda _: None, lambda _: None),
                folder,
            )
            params = load_params(folder / "model.safetensors")
        with torch.no_grad():
            for key, value in algorithm.model.named_parameters():
                value.copy_(params[f"model.{key}"])
    return Teacher(Trunk(algorithm.model, "left"), tuple(chosen.data.input_shape))


def ways() -> dict[str, tuple[bool, Transfer]]:
    """Name -> whether it begins with the trained model, and the transfer."""
    return {
        "scratch": (False, ModelTransfer(l2_sp=0)),
        "feature": (True, FeatureTransfer()),
        "model, plain": (True, ModelTransfer(l2_sp=0)),
        "model, L2-SP 0.01": (True, ModelTransfer(l2_sp=0.01)),
        "model, L2-SP 1": (True, ModelTransfer(l2_sp=1)),
        "target (conv), hints": (
            True,
            TargetTransfer(student=STUDENT, match="features", alpha=0.8),
        ),
        "target (conv), scratch": (
            True,
            TargetTransfer(student=STUDENT, match="features", alpha=0),
        ),
    }


def accuracy(way: Transfer, teacher: Teacher, episode: Episode, seed: int) -> float:
    """On the query set, with the rate that has the lower loss on what was held out of the support
    set.
    """
    halves = []
    for batch in episode:
        assert isinstance(batch.inputs, Tensor)
        halves.append(Examples(batch.inputs, batch.targets["number"]))
    support, query = halves
    tried = []
    for lr in RATES:
        settings = way.model_copy(
            update={"optimiser": Optimiser(lr=lr, steps=200, patience=None, seed=seed)}
        )
        result = settings.fit(teacher, support)
        seen = min(row["val.loss"] for row in result.course.rows if row["val.loss"] is not None)
        with torch.no_grad():
            hits = (result.network(query.inputs).argmax(-1) == query.targets).float().mean()
        tried.append((seen, float(hits)))
    return min(tried)[1]


def episodes_of(shots: int, arrays: Arrays, seed: int, number: int) -> list[Episode]:
    """Of new numbers, the same for every way."""
    source = Digits(episodes="classes", ways=WAYS, shots=shots, queries=QUERIES)
    stacks, _ = build_episodes(
        source, arrays, seed=seed, split="test", step=0, indices=range(number)
    )
    (stack,) = on_device(stacks, "cpu")
    return [tree_map(lambda leaf, i=i: leaf[i], stack) for i in range(number)]


def table(results: Mapping[str, Mapping[int, list[float]]], shots: list[int]) -> str:
    """A row for each way, Markdown."""
    lines = [f"| way | {' | '.join(f'{k} of each class | against scratch' for k in shots)} |"]
    lines.append("|---" * (1 + 2 * len(shots)) + "|")
    for name, by_shots in results.items():
        cells = []
        for k in shots:
            apart = [a - b for a, b in zip(by_shots[k], results["scratch"][k], strict=True)]
            for values in (by_shots[k], apart):
                mean, half = with_interval([100 * value for value in values])
                cells.append(
                    f"{mean:+.1f} ± {half:.1f}" if values is apart else f"{mean:.1f} ± {half:.1f}"
                )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--shots", type=int, nargs="+", default=[2, 10])
    parser.add_argument("--steps", type=int, default=300, help="of the source model's training")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    arrays = Digits().load()
    results: dict[str, dict[int, list[float]]] = {
        name: {k: [] for k in options.shots} for name in ways()
    }
    for seed in range(options.seeds):
        started = time.perf_counter()
        chosen = Experiment().override(
            {
                **SOURCE,
                "seed": seed,
                "train.steps": options.steps,
                "train.eval_every": options.steps,
            }
        )
        teachers = {
            trained: teacher_of(chosen, arrays, trained=trained) for trained in (True, False)
        }
        for k in options.shots:
            episodes = episodes_of(k, arrays, seed, options.episodes)
            for name, (trained, way) in ways().items():
                scores = [accuracy(way, teachers[trained], episode, seed) for episode in episodes]
                results[name][k].append(sum(scores) / len(scores))
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=2))
    print(table(results, options.shots))


if __name__ == "__main__":
    main()
