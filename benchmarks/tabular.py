"""Real data of several tasks each, as training, validation and test batches.

| name | tasks | inputs | what is split |
|---|---|---|---|
| energy | heating and cooling load of 768 buildings (Tsanas & Xifara, 2012) | 8, shared | rows |
| jura | cadmium, cobalt, copper in 359 samples of soil (Goovaerts, 1997) | 15, shared | rows |
| water | 14 species in 1060 samples of rivers (Dzeroski et al., 2000) | 16, shared | rows |
| school | exam score, 139 schools (Bakker & Heskes, 2003) | 28, own | pupils |
| parkinsons | total_UPDRS, 42 patients (Tsanas et al., 2010) | 19, own | visits |
| digits | two overlapping digits, left and right (scikit-learn) | 8 x 13, shared | source digits |

60 % train, 20 % validate, 20 % test. Inputs are standardised with the mean and spread of the
training rows, of all tasks together; regression targets are standardised by their task with its own
training rows.
"""

import gzip
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
import torch
from scipy.io import arff
from sklearn.datasets import load_digits
from torch import Tensor

from raymtl.tasks import classification, regression
from raymtl.types import Batch, Task

TRAIN, VAL = 0.6, 0.2
GLYPH_STEP = 5  # pixels from the left digit to the right one, which are 8 wide: they overlap by 3
NUM_PICTURES = {"train": 1000, "val": 300, "test": 400}


class Dataset(NamedTuple):
    """A multi-task problem. Inputs are one tensor [N, D], or one [N_t, D] for each task."""

    name: str
    tasks: tuple[Task, ...]
    input_shape: tuple[int, ...]
    train: Batch
    val: Batch
    test: Batch


class Rows(NamedTuple):
    """What one task has of its own: rows of one `group` must not be parted by a split."""

    inputs: np.ndarray  # [N, D]
    target: np.ndarray  # [N]
    group: np.ndarray  # [N]


def split_rows(
    group: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the training, validation and test rows; whole groups go to one of them."""
    groups = rng.permutation(np.unique(group))
    first, second = round(TRAIN * len(groups)), round((TRAIN + VAL) * len(groups))
    parts = groups[:first], groups[first:second], groups[second:]
    if not all(len(part) for part in parts):
        raise ValueError(
            f"expected enough groups of rows for three parts, got {len(groups)}. Leave the task "
            "out."
        )
    train, val, test = (np.flatnonzero(np.isin(group, part)) for part in parts)
    return train, val, test


def with_shared_inputs(
    name: str, inputs: np.ndarray, targets: Mapping[str, np.ndarray], seed: int
) -> Dataset:
    """Inputs [N, D] and for each task targets [N]: every row has all targets."""
    parts = split_rows(np.arange(len(inputs)), np.random.default_rng(seed))
    scale = _scale(inputs[parts[0]])
    tasks = tuple(_regression(task, target[parts[0]]) for task, target in targets.items())
    batches = [
        Batch(
            _standardised(inputs[part], scale),
            {t: _tensor(target[part]) for t, target in targets.items()},
            {},
        )
        for part in parts
    ]
    return Dataset(name, tasks, (inputs.shape[1],), *batches)


def with_own_inputs(name: str, rows: Mapping[str, Rows], seed: int) -> Dataset:
    """One task for each entry, which brings its own inputs [N_t, D]."""
    rng = np.random.default_rng(seed)
    parts = {task: split_rows(own.group, rng) for task, own in rows.items()}
    scale = _scale(np.concatenate([own.inputs[parts[task][0]] for task, own in rows.items()]))
    tasks = tuple(_regression(task, own.target[parts[task][0]]) for task, own in rows.items())
    batches = [
        Batch(
            {task: _standardised(own.inputs[parts[task][i]], scale) for task, own in rows.items()},
            {task: _tensor(own.target[parts[task][i]]) for task, own in rows.items()},
            {},
        )
        for i in range(3)
    ]
    return Dataset(name, tasks, (next(iter(rows.values())).inputs.shape[1],), *batches)


def draw(batch: Batch, count: int, generator: torch.Generator) -> Batch:
    """`count` rows at random, with replacement; as many of each task where tasks have their own."""
    if isinstance(batch.inputs, Tensor):
        index = torch.randint(len(batch.inputs), (count,), generator=generator)
        return Batch(
            batch.inputs[index], {name: target[index] for name, target in batch.targets.items()}, {}
        )
    where = {
        name: torch.randint(len(own), (count,), generator=generator)
        for name, own in batch.inputs.items()
    }
    return Batch(
        {name: own[where[name]] for name, own in batch.inputs.items()},
        {name: target[where[name]] for name, target in batch.targets.items()},
        {},
    )


def energy(folder: Path, seed: int, most_tasks: int) -> Dataset:
    return _from_arff("energy", folder / "mulan_enb.arff.gz", ["heating", "cooling"], seed)


def jura(folder: Path, seed: int, most_tasks: int) -> Dataset:
    return _from_arff("jura", folder / "mulan_jura.arff.gz", ["cadmium", "cobalt", "copper"], seed)


def water(folder: Path, seed: int, most_tasks: int) -> Dataset:
    return _from_arff(
        "water", folder / "mulan_wq.arff.gz", [f"species_{number}" for number in range(14)], seed
    )


def school(folder: Path, seed: int, most_tasks: int) -> Dataset:
    file = scipy.io.loadmat(folder / "school.mat")
    schools = list(zip(file["X"][0], file["Y"][0], strict=True))
    rows = {}
    for index in evenly(len(schools), most_tasks):
        inputs, target = (np.asarray(values, dtype=float) for values in schools[index])
        rows[f"school_{index}"] = Rows(inputs, target[:, 0], np.arange(len(target)))
    return with_own_inputs("school", rows, seed)


def parkinsons(folder: Path, seed: int, most_tasks: int) -> Dataset:
    # A visit is several recordings with one and the same score: in two parts they would give it
    # away. motor_UPDRS, part of the total, would do so too.
    with gzip.open(folder / "parkinsons_updrs.data.gz", "rt") as file:
        header = file.readline().split()
        table = np.loadtxt(file)
    target = header.index("total_UPDRS")
    kept = [
        i
        for i, column in enumerate(header)
        if column not in ("subject#", "total_UPDRS", "motor_UPDRS")
    ]
    patients = np.unique(table[:, 0])
    rows = {}
    for index in evenly(len(patients), most_tasks):
        own = table[table[:, 0] == patients[index]]
        rows[f"patient_{index}"] = Rows(
            own[:, kept], own[:, target], visits(own[:, header.index("test_time")])
        )
    return with_own_inputs("parkinsons", rows, seed)


def visits(day: np.ndarray) -> np.ndarray:
    """Number of the visit of each recording [N]: recordings less than half a day apart are of one
    visit.
    """
    order = np.argsort(day)
    number = np.empty(len(day), dtype=int)
    number[order] = np.concatenate([[0], (np.diff(day[order]) > 0.5).cumsum()])
    return number


def digits(folder: Path, seed: int, most_tasks: int) -> Dataset:
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    rng = np.random.default_rng(seed)
    parts = split_rows(np.arange(len(labels)), rng)
    batches = []
    for part, count in zip(parts, NUM_PICTURES.values(), strict=True):
        left, right = rng.choice(part, (2, count))
        pictures = np.zeros((count, 8, GLYPH_STEP + 8))
        pictures[:, :, :8] = images[left]
        pictures[:, :, GLYPH_STEP:] = np.maximum(pictures[:, :, GLYPH_STEP:], images[right])
        targets = {"left": torch.from_numpy(labels[left]), "right": torch.from_numpy(labels[right])}
        batches.append(Batch(_tensor(pictures.reshape(count, -1)), targets, {}))
    tasks = classification("left", 10), classification("right", 10)
    return Dataset("digits", tasks, (8 * (GLYPH_STEP + 8),), *batches)


LOADERS: dict[str, Callable[[Path, int, int], Dataset]] = {
    "energy": energy,
    "jura": jura,
    "water": water,
    "school": school,
    "parkinsons": parkinsons,
    "digits": digits,
}
"""Name -> (folder, seed of the split, how many tasks at most) -> data."""


def evenly(available: int, most: int) -> list[int]:
    """At most `most` of the indices below `available`, evenly spaced from the first on."""
    count = min(available, most)
    return [index * available // count for index in range(count)]


def _from_arff(name: str, path: Path, targets: list[str], seed: int) -> Dataset:
    """The last columns are the targets."""
    with gzip.open(path, "rt") as file:
        values, _ = arff.loadarff(io.StringIO(file.read()))
    table = np.array(values.tolist(), dtype=float)
    inputs, outputs = table[:, : -len(targets)], table[:, -len(targets) :]
    return with_shared_inputs(name, inputs, dict(zip(targets, outputs.T, strict=True)), seed)


def _regression(name: str, target: np.ndarray) -> Task:
    if not target.std() > 0:
        raise ValueError(
            f"task '{name}': expected training targets that differ, got {target[:3]}. Leave the "
            "task out."
        )
    return regression(name, float(target.mean()), float(target.std()))


def _scale(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spread = inputs.std(0)
    return inputs.mean(0), np.where(spread > 0, spread, 1.0)  # a constant column becomes 0


def _standardised(inputs: np.ndarray, scale: tuple[np.ndarray, np.ndarray]) -> Tensor:
    return _tensor((inputs - scale[0]) / scale[1])


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
