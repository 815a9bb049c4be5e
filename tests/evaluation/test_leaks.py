"""What must not be known is not known: query labels, held-out classes, the floor without adapting, another process."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.utils._pytree import tree_flatten

from raymtl.config import Experiment
from raymtl.data import CIFAR100, SPLITS, VOC, Digits, Files, NYUv2, Prepared, Several, SourceSpec
from raymtl.data.base import Arrays, Bucket, Source, Split
from raymtl.data.draws import Draws
from raymtl.data.episodes import build_buckets, build_episodes, on_device
from raymtl.data.formats.cifar100 import Pictures
from raymtl.data.sources.cifar100_splits import CIFAR_FS
from raymtl.encoders import ConvSpec, MLPSpec
from raymtl.evaluation.evaluate import evaluate, load_model
from raymtl.learners import LearnerSpec
from raymtl.sharing import HardSpec
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, over_episodes
from raymtl.step.meta_gradient import meta_gradient
from raymtl.storage import formats
from raymtl.tasks import classification
from raymtl.types import Batch, Episode
from raymtl.weighting import StaticSpec
from tests.conftest import LEARNERS, axes, experiment, perturbed
from tests.data.blood import small_cells
from tests.data.own import own_shards, own_table
from tests.data.rooms import numbered_frame, small_rooms
from tests.data.test_sinusoid import FLOOR
from tests.drawing import one_episode
from tests.learners.test_learners import VARIANTS
from tests.processes import run_on
from tests.step.test_isolation import allowed

WAYS, PER_CLASS, DIM = 5, 3, 6
CHANCE = 1 / WAYS


Labels = Literal["true", "shuffled", "shuffled and shown"]


def clouds(number: int, seed: int, labels: Labels) -> Episode:
    """Five Gaussian clouds an episode, about the corners of a simplex; the query may be the support set, too."""
    rng = torch.Generator().manual_seed(seed)
    true = torch.arange(WAYS).repeat_interleave(PER_CLASS).expand(number, -1)
    centres = 3 * torch.eye(WAYS, DIM) + torch.randn(number, WAYS, DIM, generator=rng)
    support, query = (
        centres[:, true[0]] + torch.randn(number, WAYS * PER_CLASS, DIM, generator=rng)
        for _ in range(2)
    )
    shuffled = torch.stack([row[torch.randperm(len(row), generator=rng)] for row in true])
    judged = Batch(query, {"number": true if labels == "true" else shuffled}, {})
    return Episode(
        judged if labels == "shuffled and shown" else Batch(support, {"number": true}, {}), judged
    )


def accuracy_after_training(
    learner: str, values: dict[str, object], labels: Labels
) -> tuple[float, float]:
    """Trained and scored on such episodes: the mean over 300 new ones, and its 95 % interval."""
    tasks = (classification("number", WAYS),)
    torch.manual_seed(0)
    model = HardSpec().build(tasks, [MLPSpec(hidden=(24,)).build((DIM,))])
    own = {key.removeprefix("learner."): value for key, value in values.items()}
    spec = TypeAdapter(LearnerSpec).validate_python({"name": learner, **own})
    if "inner_lr" in type(spec).model_fields:
        spec = spec.model_copy(update={"inner_lr": 0.3})
    algorithm = Algorithm(tasks, model, StaticSpec().build(tasks), spec)
    params = algorithm.init_params()
    optimizer = torch.optim.Adam(params.values(), lr=0.01)
    for step in range(12):
        grads = meta_gradient(algorithm, params, clouds(8, step, labels), step=step).grads
        for name, value in params.items():
            value.grad = grads[name]
        optimizer.step()

    def hits(episode: Episode) -> Tensor:
        predicted = algorithm.predict(
            algorithm.adapt(params, episode.support), episode.query.inputs
        )["number"]
        return (predicted.argmax(-1) == episode.query.targets["number"]).float().mean()

    with torch.no_grad():
        found = over_episodes(hits, clouds(300, 10**6, labels), ExecutionConfig())
    return float(found.mean()), 1.96 * float(found.std()) / len(found) ** 0.5


@pytest.mark.parametrize(("learner", "values"), VARIANTS)
def test_shuffled_query_labels_are_met_by_chance(learner: str, values: dict[str, Any]) -> None:
    """Two intervals wide, for there are many learners."""
    mean, ci95 = accuracy_after_training(learner, values, "shuffled")
    assert abs(mean - CHANCE) < 2 * ci95 < 0.03
    mean, ci95 = accuracy_after_training(learner, values, "true")
    assert mean - 2 * ci95 > CHANCE


@pytest.mark.parametrize("learner", ["maml", "matching", "metaopt", "protonet", "r2d2", "reptile"])
def test_leaking_support_sets_would_be_seen(learner: str) -> None:
    """Guards the test above: shuffled labels that leak are met far more often than by chance."""
    mean, ci95 = accuracy_after_training(learner, {}, "shuffled and shown")
    assert mean - 2 * ci95 > CHANCE + 0.05


class Mislabelled(Digits):
    """The digits, the labels of every query set in another order."""

    def draw_episodes(self, arrays: Arrays, split: Split, draws: Draws) -> Iterator[Bucket]:
        for bucket in super().draw_episodes(arrays, split, draws):
            support, query = bucket.episodes
            rolled = {name: target.roll(1, dims=1) for name, target in query.targets.items()}
            yield bucket._replace(episodes=Episode(support, query._replace(targets=rolled)))


NORMS = get_args(ConvSpec.model_fields["norm"].annotation)
CONV = {"encoder.name": "conv", "encoder.channels": [4, 8]}
SEEING = [
    *(("hard", learner, {}) for learner in LEARNERS),
    *(
        (sharing, learner, {})
        for sharing in ("cross_stitch", "mmoe", "adversarial", "attention")
        for learner in ("maml", "protonet")
    ),
    *(
        ("hard", learner, {**CONV, "encoder.norm": norm})
        for norm in NORMS
        for learner in ("maml", "protonet")
    ),
    # These carry the statistics of a batch norm through a loop of their own.
    *(
        ("hard", learner, {**CONV, "encoder.norm": "batch"})
        for learner in ("maml_pp", "imaml", "reptile")
    ),
]


@pytest.mark.parametrize(("sharing", "learner", "values"), [c for c in SEEING if allowed(*c)])
def test_predictions_ignore_query_labels_bit_identically(
    sharing: str, learner: str, values: dict[str, Any], arrays: Arrays
) -> None:
    chosen = axes(sharing, "static", learner).override({**values, "evaluate.test_episodes": 2})
    if "inner_steps" in type(chosen.learner).model_fields:
        chosen = chosen.override({"learner.inner_steps": 2})
    mislabelled = chosen.model_copy(
        update={"data": Mislabelled.model_validate(chosen.data.model_dump())}
    )
    algorithm = chosen.build()
    params = algorithm.init_params()
    rows, others = (evaluate(e, algorithm, params, arrays).examples for e in (chosen, mislabelled))
    targets = [f"{task}.target" for task in chosen.data.task_names]
    assert all([row[name] for row in rows] != [other[name] for other in others] for name in targets)
    for row, other in zip(rows, others, strict=True):
        assert {k: v for k, v in row.items() if k not in targets} == {
            k: v for k, v in other.items() if k not in targets
        }


def test_unadapted_models_stay_above_the_floor() -> None:
    """Joint training comes near the best unadapted prediction, and cannot pass it."""
    chosen = experiment(
        data={"name": "sinusoid"},
        encoder__hidden=[40, 40],
        learner__inner_steps=0,
        train__meta_batch=50,
    )
    algorithm = chosen.build()
    params = algorithm.init_params()
    optimizer = torch.optim.Adam(params.values(), lr=0.01)
    for step in range(150):
        drawn, _ = build_episodes(
            chosen.data, {}, seed=0, split="train", step=step, indices=range(50)
        )
        episodes = on_device(drawn, "cpu")
        grads = meta_gradient(algorithm, params, episodes).grads
        for name, value in params.items():
            value.grad = grads[name]
        optimizer.step()
    mse = evaluate(chosen, algorithm, params, {}, episodes=1000).metrics["tasks"]["y"]["mse"][
        "after"
    ]
    assert mse["mean"] + mse["ci95"] > FLOOR
    assert mse["mean"] < FLOOR + 0.3  # near enough for a leak to be seen


def numbered_drawings(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Omniglot's shapes: pixels at random, so that every picture is one of a kind."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (1623, 20, 28, 28), np.uint8), np.array(
        [f"character {n}" for n in range(1623)]
    )


def numbered_digits(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's shapes, one of a kind."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (70_000, 28, 28), np.uint8), np.arange(70_000) % 10


def numbered_pictures(root: Path) -> Pictures:
    """CIFAR-100's numbers of smaller pictures, again one of a kind."""
    rng = np.random.default_rng(0)
    members = {
        "train": np.arange(50_000).reshape(100, 500),
        "test": np.arange(50_000, 60_000).reshape(100, 100),
    }
    names = [*CIFAR_FS["val"], *CIFAR_FS["test"], *(f"kind {number}" for number in range(64))]
    pictures = rng.integers(1, 256, (60_000, 1, 8, 8), np.uint8)
    return Pictures(pictures, members, np.arange(100) % 20, np.array(names))


def many(source: Source, arrays: Arrays, split: Split) -> list[tuple[Episode, str]]:
    return [one_episode(source, arrays, split, index) for index in range(40)]


def inputs(batch: Batch) -> set[bytes]:
    return {row.tobytes() for pictures in arrays_of(batch) for row in pictures}


def arrays_of(batch: Batch) -> list[np.ndarray]:
    """The inputs that all tasks share, or those of each."""
    if isinstance(batch.inputs, Tensor):
        return [batch.inputs.numpy()]
    return [own.numpy() for own in batch.inputs.values()]


def upright(batch: Batch) -> set[bytes]:
    """The same, of a picture its least rotation, so that a turned one is known again."""
    return set.union(*(_upright(own) for own in arrays_of(batch)))


def _upright(pictures: np.ndarray) -> set[bytes]:
    if pictures.ndim < 4:
        return {row.tobytes() for row in pictures}
    turned = [np.rot90(pictures, turn, (2, 3)) for turn in range(4)]
    return {min(rotation[row].tobytes() for rotation in turned) for row in range(len(pictures))}


OF_FILES: dict[type[Source], Callable[[Path], Source]] = {
    Files: own_table,
    NYUv2: small_rooms,
    Prepared: lambda folder: own_shards(folder, in_memory_mb=0.001),
    VOC: small_cells,
}
"""Sources that have nothing to read from by default, and what makes them of a folder."""
SOURCES: list[tuple[str, Callable[[Path], Source]]] = [
    *(
        (kind.model_fields["name"].default, OF_FILES.get(kind, lambda folder, kind=kind: kind()))
        for kind in get_args(get_args(SourceSpec)[0])
    ),
    ("digits classes", lambda folder: Digits(episodes="classes")),
    (
        "digits of several shots and ways",
        lambda folder: Digits(episodes="classes", shots=(1, 4), ways=(2, 6)),
    ),
    ("several together", lambda folder: Several(episodes="together").resolve()),
    ("cifar100 fine and coarse", lambda folder: CIFAR100(episodes="fine_and_coarse", shots=5)),
    ("cifar100 classes", lambda folder: CIFAR100(episodes="classes", shots=(1, 4), ways=(2, 6))),
]


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that are one of a kind, in place of those of the data sets."""
    monkeypatch.setattr("raymtl.data.sources.omniglot.read_drawings", numbered_drawings)
    monkeypatch.setattr("raymtl.data.sources.cifar100.read_pictures", numbered_pictures)
    monkeypatch.setattr("raymtl.data.sources.multimnist.read_digits", numbered_digits)
    monkeypatch.setattr("raymtl.data.sources.nyuv2.read_frame", numbered_frame)
    monkeypatch.setenv("RAYMTL_DATA", "drawn above")


@pytest.mark.parametrize(("name", "make"), SOURCES, ids=[name for name, _ in SOURCES])
def test_no_input_stands_twice(
    name: str, make: Callable[[Path], Source], numbered: None, tmp_path: Path
) -> None:
    """In support and query, or in two splits."""
    source = make(tmp_path)
    arrays = source.load()
    of_split: list[set[bytes]] = []
    for split in SPLITS:
        found: set[bytes] = set()
        for (support, query), _ in many(source, arrays, split):
            assert not inputs(support) & inputs(query)
            found |= upright(support) | upright(query)
        assert found
        of_split.append(found)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not of_split[one] & of_split[other]


def by_index(source: Source, arrays: Arrays, indices: Sequence[int]) -> dict[int, Any]:
    """Each training episode of step 7 as its structure, values and domain."""
    found = {}
    buckets = build_buckets(source, arrays, seed=3, split="train", step=7, indices=indices)
    for bucket in buckets:
        leaves, structure = tree_flatten(bucket.episodes)
        for row, index in enumerate(bucket.indices.tolist()):
            values = [(leaf.dtype, leaf[row].shape, leaf[row].numpy().tobytes()) for leaf in leaves]
            found[index] = str(structure), values, bucket.domains()[row]
    assert sorted(found) == sorted(indices)
    return found


@pytest.mark.parametrize(("name", "make"), SOURCES, ids=[name for name, _ in SOURCES])
def test_episodes_are_the_same_whoever_draws(
    name: str, make: Callable[[Path], Source], numbered: None, tmp_path: Path
) -> None:
    """All at once, alone, in any order, or by the shards of workers."""
    source = make(tmp_path)
    arrays = source.load()
    together = by_index(source, arrays, range(12))
    assert len({str(values) for _, values, _ in together.values()}) == 12
    backwards = by_index(source, arrays, [11, 4, 0])
    shards = [by_index(source, arrays, range(start, start + 4)) for start in (0, 4, 8)]
    alone = [by_index(source, arrays, [index]) for index in (2, 9)]
    for drawn in (backwards, *shards, *alone):
        assert drawn == {index: together[index] for index in drawn}


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (Digits(), lambda domain: [domain]),
        (Digits(episodes="classes"), lambda domain: domain.removeprefix("numbers ").split()),
        (CIFAR100(episodes="classes"), lambda domain: domain.split(", ")),
        (CIFAR100(episodes="classes", split="fc100"), lambda domain: domain.split(", ")),
        ("omniglot", lambda domain: [name.partition(" at ")[0] for name in domain.split(", ")]),
    ],
)
def test_classes_and_domains_of_the_splits_are_disjoint(
    source: Source | str, parts: Callable[[str], list[str]], numbered: None
) -> None:
    """By the names that the report shows; a turned character is the same character."""
    if isinstance(source, str):
        chosen: Source = TypeAdapter(SourceSpec).validate_python({"name": source})
    else:
        chosen = source
    arrays = chosen.load()
    train, val, test = (
        {part for _, d in many(chosen, arrays, split) for part in parts(d)} for split in SPLITS
    )
    assert min(len(train), len(val), len(test)) >= 3
    assert not (train & val | train & test | val & test)


def adapt_afresh(_: int, folders: Sequence[Path]) -> None:
    """What the other process does: adapts the saved models to an episode, and saves all it gets."""
    torch.set_num_threads(1)
    for folder in folders:
        chosen, algorithm, params = load_model(folder)
        drawn, _domain = one_episode(chosen.data, chosen.data.load(), "test", 0, seed=5)
        episode = on_device(drawn, "cpu")
        with torch.no_grad():
            adapted = algorithm.adapt(params, episode.support)
            predictions = algorithm.predict(adapted, episode.query.inputs)
        formats.save_params(folder / "predictions.safetensors", {**adapted, **predictions})
    assert "ray" not in sys.modules


@pytest.mark.slow
def test_another_process_adapts_bit_identically(arrays: Arrays, tmp_path: Path) -> None:
    """Saved here, loaded there, adapted to a task that neither has seen."""
    cases: list[tuple[Path, Experiment]] = []
    for number, (learner, values) in enumerate(VARIANTS):
        chosen, folder = axes("hard", "static", learner).override(values), tmp_path / str(number)
        folder.mkdir()
        chosen.save(folder / "config.yaml")
        formats.save_params(folder / "model.safetensors", perturbed(chosen.build()))
        cases.append((folder, chosen))
    run_on(1, adapt_afresh, [folder for folder, _ in cases])
    for folder, chosen in cases:
        algorithm = chosen.build()
        drawn, _ = one_episode(chosen.data, arrays, "test", 0, seed=5)
        episode = on_device(drawn, "cpu")
        with torch.no_grad():
            adapted = algorithm.adapt(perturbed(algorithm), episode.support)
            expected = {**adapted, **algorithm.predict(adapted, episode.query.inputs)}
        found = formats.load_params(folder / "predictions.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), f"{chosen.learner.name}: {name}"
