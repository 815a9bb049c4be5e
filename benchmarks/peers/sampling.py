"""Drawing episodes: raymtl's sampler beside a torch DataLoader.

The DataLoader's data set draws and gathers one episode for each index, the fastest that a plain
data set can do, and its default function stacks them. Drawings are noise of Omniglot's shape; the
table has 50,000 rows of 20 numbers, 3 labels and 500 groups.
"""

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers import conv4
from benchmarks.peers.installed import is_installed, without_init
from benchmarks.peers.ours import experiment, meta_batch
from benchmarks.peers.subject import Contest, Setting, Subject
from benchmarks.peers.timing import Way
from raymtl.config import Experiment
from raymtl.data import Arrays
from raymtl.data.episodes import on_device

META_BATCH = 32
NUM_ROWS, NUM_GROUPS = 50_000, 500
SHOTS, QUERIES = 8, 24

Draw = Callable[[], tuple[Tensor, ...]]


def subjects() -> list[Subject]:
    """Drawings as floats and as bytes, rows of a table, and rows of one group of it."""
    return [
        Subject("episodes of omniglot", "episode", partial(_drawings, True)),
        Subject("episodes of omniglot, as bytes", "episode", partial(_drawings, False)),
        Subject("episodes of a table", "episode", partial(_table, "rows")),
        Subject("episodes of a table's groups", "episode", partial(_table, "groups")),
    ]


def _drawings(as_floats: bool, setting: Setting) -> Contest:
    text = "data: {name: omniglot, ways: 5, shots: 1, queries: 15}\nencoder: {name: conv4}"
    config = experiment(f"name: sampling\n{text}\ntrain: {{meta_batch: {META_BATCH}}}\n")
    arrays = conv4.noise(4)
    ways = {"raymtl": _ours(config, arrays, setting.device if as_floats else None)}
    if not setting.ours:
        drawings = torch.from_numpy(arrays["drawings"])
        train = torch.from_numpy(arrays["train"])
        if as_floats:  # converted once, which takes four times the memory
            drawings = drawings.float().div_(255)
        ways["torch DataLoader"] = _loader(partial(_draw_characters, drawings, train))
        tasks = _learn2learn(drawings, train)
        if tasks is not None:
            ways["DataLoader on learn2learn"] = _loader(tasks)
    return Contest(ways, "raymtl")


def _draw_characters(drawings: Tensor, train: Tensor) -> tuple[Tensor, ...]:
    """5 characters, each turned by chance, with 1 and 15 of their 20 drawings."""
    classes = torch.tensor(random.sample(range(4 * len(train)), 5))
    characters = train[classes // 4] + classes % 4 * (len(drawings) // 4)
    order = torch.rand(5, 20).argsort(1)
    support = drawings[characters[:, None], order[:, :1]].view(-1, 1, 28, 28)
    query = drawings[characters[:, None], order[:, 1:16]].view(-1, 1, 28, 28)
    labels = torch.arange(5)
    return support, labels, query, labels.repeat_interleave(15)


class _Drawings(Dataset[tuple[Tensor, int]]):
    """Single drawings with the number of their character."""

    def __init__(self, drawings: Tensor) -> None:
        self.drawings = drawings.view(-1, 1, 28, 28)

    def __len__(self) -> int:
        return len(self.drawings)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.drawings[index], index // 20


def _learn2learn(drawings: Tensor, train: Tensor) -> Draw | None:
    """Tasks of learn2learn's sampler (arXiv:2008.12284), by its fastest transform.

    None where it is not installed, or its compiled parts are not.
    """
    if not is_installed("learn2learn"):
        return None
    without_init("learn2learn")
    try:
        from learn2learn.data import MetaDataset, Taskset, transforms
    except ImportError as error:
        print(f"  learn2learn's sampler is left out, for want of {error}", flush=True)
        return None

    pictures = drawings[train]
    labels = {number: number // 20 for number in range(20 * len(train))}
    indices = {c: list(range(20 * c, 20 * c + 20)) for c in range(len(train))}
    data = MetaDataset(_Drawings(pictures), labels_to_indices=indices, indices_to_labels=labels)
    steps = [
        transforms.FusedNWaysKShots(data, n=5, k=16),
        transforms.LoadData(data),
        transforms.RemapLabels(data),
        transforms.ConsecutiveLabels(data),
    ]
    tasks = Taskset(data, steps, num_tasks=10**6)
    is_support = torch.zeros(80, dtype=torch.bool)
    is_support[::16] = True

    def draw() -> tuple[Tensor, ...]:
        inputs, targets = tasks.sample()
        return inputs[is_support], targets[is_support], inputs[~is_support], targets[~is_support]

    return draw


def _table(episodes: str, setting: Setting) -> Contest:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(NUM_ROWS, 20)).astype(np.float32)
    labels = inputs @ rng.normal(size=(20, 3)).astype(np.float32)
    groups = rng.integers(0, NUM_GROUPS, NUM_ROWS)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        _write(path, inputs, labels, groups)
        config = experiment(f"""
name: sampling
data:
  name: files
  path: {path}
  tasks: {{a: {{}}, b: {{}}, c: {{}}}}
  group: group
  episodes: {episodes}
  shots: {SHOTS}
  queries: {QUERIES}
encoder: {{name: mlp, hidden: [64, 32]}}
train: {{meta_batch: {META_BATCH}}}
""")
        arrays = config.data.load()
    ways = {"raymtl": _ours(config, arrays, setting.device)}
    if not setting.ours:
        rows = torch.from_numpy(inputs), torch.from_numpy(labels)
        if episodes == "groups":
            members = [torch.from_numpy(np.flatnonzero(groups == g)) for g in range(NUM_GROUPS)]
            draw: Draw = partial(_draw_group, *rows, members)
        else:
            draw = partial(_draw_rows, *rows)
        ways["torch DataLoader"] = _loader(draw)
    return Contest(ways, "raymtl")


def _write(path: Path, inputs: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {f"x{number}": inputs[:, number] for number in range(inputs.shape[1])}
    columns |= {name: labels[:, number] for number, name in enumerate("abc")}
    pq.write_table(pa.table({**columns, "group": groups}), path)


def _draw_rows(inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return _halves(inputs, labels, torch.randint(len(inputs), (SHOTS + QUERIES,)))


def _draw_group(inputs: Tensor, labels: Tensor, members: list[Tensor]) -> tuple[Tensor, ...]:
    own = members[int(torch.randint(len(members), ()))]
    return _halves(inputs, labels, own[torch.randperm(len(own))[: SHOTS + QUERIES]])


def _halves(inputs: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    support, query = rows[:SHOTS], rows[SHOTS:]
    return inputs[support], labels[support], inputs[query], labels[query]


def _ours(config: Experiment, arrays: Arrays, device: str | None) -> Way:
    """The meta-batches of a training, one after the other; without a device, as read."""
    steps = count()

    def run() -> None:
        episodes = meta_batch(config, arrays, next(steps))
        if device is not None:
            on_device(episodes, device)

    return Way(run, META_BATCH, repeat=10)


class _Episodes(Dataset[tuple[Tensor, ...]]):
    """An episode for each index, drawn by chance."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.draw()


def _loader(draw: Draw) -> Way:
    batches: Iterator[Any] = iter(DataLoader(_Episodes(draw), META_BATCH))
    return Way(lambda: next(batches), META_BATCH, repeat=10)
