"""Data prepared into shards: equal to the files that they were made of."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves

from raymtl.config import Experiment
from raymtl.data import SPLITS, Files, Source
from raymtl.data.episodes import build_episodes
from raymtl.data.prepared import encode_shard
from raymtl.data.prepared.manifest import ShardEntry
from raymtl.data.prepared.plan import Job, ShardPlan
from raymtl.data.prepared.prepare import in_this_process, prepare
from raymtl.data.prepared.source import Prepared
from raymtl.data.tables.dataset import TableDataset
from tests.data.own import (
    PICTURE_TASKS,
    columns,
    own_table,
    write_parquet,
    write_pictures,
    write_scenes,
)
from tests.data.texts import sentences
from tests.training.runs import run

SMALL = 0.01
"""Megabytes of a shard, so that the few rows of a test are in several."""
Make = Callable[[Path], Files]


def table(folder: Path) -> Files:
    return own_table(folder)


def pictures(folder: Path, **values: Any) -> Files:
    root = folder / "pictures"
    if not root.exists():
        write_pictures(root, 150)
    return Files(path=str(root), tasks=PICTURE_TASKS, size=16, **values).resolve()


def maps(folder: Path) -> Files:
    root = write_scenes(folder / "mine", 100)
    tasks: dict[str, Any] = {"larger": {}, "mask": {}, "normals": {"path": str(root / "normals")}}
    tasks["depth"] = {"path": str(root / "depths"), "scale": 0.001, "kind": "depth"}
    return Files(path=str(root), size=16, tasks=tasks).resolve()


def grouped(folder: Path, **values: Any) -> Files:
    content = columns(300, tasks=3, missing=0.1)
    content["school"] = [f"s{i % 12}" for i in range(300)]
    path = write_parquet(folder / "own.parquet", content)
    settings = {"group": "school", "episodes": "groups", "shots": [2, 4], "queries": 6, **values}
    exclude = ["task *", "id", "number"]
    tasks = {"level": {"column": "task 0.x"}}
    return Files(path=str(path), tasks=tasks, exclude=exclude, **settings).resolve()


def classed(folder: Path, **values: Any) -> Files:
    content: dict[str, Any] = columns(600, tasks=0)
    content["kind"] = [f"k{i % 20}" for i in range(600)]
    path = write_parquet(folder / "own.parquet", content)
    settings = {"episodes": "classes", "ways": [2, 3], "shots": 2, "queries": 3, **values}
    task = {"kind": {"kind": "classification"}}
    return Files(path=str(path), tasks=task, exclude=["number", "id"], **settings).resolve()


def written(folder: Path) -> Files:
    content = columns(120, tasks=2)
    content["note"] = sentences(120)
    path = write_parquet(folder / "own.parquet", content)
    settings: dict[str, Any] = {"text_size": 128, "exclude": ["id", "number"]}
    tasks: dict[str, Any] = {"level": {"column": "task 0.x"}}
    return Files(path=str(path), tasks=tasks, **settings).resolve()


MAKES = (table, pictures, maps, grouped, classed, written)


def prepared(source: Files, folder: Path, **values: Any) -> Prepared:
    prepare(source, str(folder), shard_mb=SMALL)
    return Prepared(path=str(folder), **values).resolve()


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert list(one) == list(other)
    for key, values in other.items():
        assert one[key].dtype == values.dtype, key
        np.testing.assert_array_equal(one[key], values, err_msg=key)


def episodes(source: Source, arrays: dict[str, np.ndarray]) -> Iterator[Any]:
    for split in SPLITS:
        for step in (0, 7):
            yield build_episodes(source, arrays, seed=0, split=split, step=step, indices=range(3))


def assert_same_episodes(one: Source, other: Source) -> None:
    """In all that a training or a score reads of a source."""
    arrays, others = one.load(), other.load()
    assert one.sizes(arrays) == other.sizes(others)
    for (stacks, domains), expected in zip(
        episodes(one, arrays), episodes(other, others), strict=True
    ):
        assert domains == expected[1]
        for leaf, value in zip(tree_leaves(stacks), tree_leaves(expected[0]), strict=True):
            assert leaf.dtype == value.dtype
            assert torch.equal(leaf.nan_to_num(), value.nan_to_num())
    for split in SPLITS:
        assert one.populations(arrays, split) == other.populations(others, split)
        for section, held_out in zip(
            one.every_example(arrays, split), other.every_example(others, split), strict=True
        ):
            np.testing.assert_array_equal(section.rows, held_out.rows)
            batches = (section.batch(section.rows), held_out.batch(held_out.rows))
            for leaf, value in zip(*map(tree_leaves, batches), strict=True):
                assert torch.equal(leaf.nan_to_num(), value.nan_to_num())


@pytest.mark.parametrize("make", MAKES)
def test_prepared_arrays_are_those_of_the_files(make: Make, tmp_path: Path) -> None:
    source = make(tmp_path)
    shards = prepared(source, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("shard-*.parquet"))) > 1
    expected, arrays = source.load(), shards.load()
    assert_equal(arrays, expected)
    assert shards.notes(arrays) == source.notes(expected)
    assert shards.make_tasks()[0].name == source.make_tasks()[0].name
    assert shards.input_shape == source.input_shape


@pytest.mark.parametrize("make", MAKES)
def test_episodes_drawn_from_shards_are_those_in_memory(make: Make, tmp_path: Path) -> None:
    source = make(tmp_path)
    in_memory = prepared(source, tmp_path / "out")
    from_shards = Prepared(path=str(tmp_path / "out"), in_memory_mb=0.001).resolve()
    assert "inputs" not in from_shards.load()
    assert_same_episodes(from_shards, in_memory)


def test_a_folder_that_is_prepared_anew_is_read_anew(tmp_path: Path) -> None:
    """By a process that has read the shards that were there before."""
    drawn = []
    for seed in (0, 1):
        path = tmp_path / f"{seed}.parquet"
        write_parquet(path, columns(tasks=1, missing=0.0, seed=seed))
        source = Files(path=str(path), tasks={"level": {"column": "task 0.x"}}).resolve()
        shards = prepared(source, tmp_path / "out", in_memory_mb=0.001)
        drawn.append(next(episodes(shards, shards.load())))
        shutil.rmtree(tmp_path / "out")
    (one, _), (other, _) = drawn
    assert not torch.equal(tree_leaves(one)[0], tree_leaves(other)[0])


def test_training_from_shards_gives_the_weights_of_training_from_files(tmp_path: Path) -> None:
    source = pictures(tmp_path, augment={"flip": True, "colour": 0.2}, shots=2, queries=4)
    shards = prepared(source, tmp_path / "out")
    plan = {"steps": 3, "eval_every": 3, "meta_batch": 2}
    weights = []
    for number, data in enumerate(
        (source, shards, Prepared(path=str(tmp_path / "out"), in_memory_mb=0.001).resolve())
    ):
        chosen = Experiment.model_validate(
            {"data": data.model_dump(), "encoder": {"name": "conv"}, "train": plan}
        ).resolve()
        folder = tmp_path / f"run{number}"
        run(chosen, chosen.data.load(), folder)
        weights.append(load_file(folder / "model.safetensors"))
    for name, expected in weights[0].items():
        assert torch.equal(weights[1][name], expected), name
        assert torch.equal(weights[2][name], expected), name


@pytest.mark.parametrize(
    ("make", "before", "now"),
    [
        (grouped, {"episodes": "rows"}, {"episodes": "groups", "shots": 3, "queries": 5}),
        (classed, {"episodes": "rows"}, {"episodes": "classes", "ways": 3, "shots": 1}),
        (classed, {}, {"episodes": "rows", "shots": 4, "queries": 9}),
    ],
)
def test_episodes_can_be_chosen_anew(make: Any, before: Any, now: Any, tmp_path: Path) -> None:
    """Rows are then split as they would be for these episodes."""
    shards = prepared(make(tmp_path, **before), tmp_path / "out", **now)
    arrays, expected = shards.load(), make(tmp_path, **now).load()
    for key in [key for key in expected if key.startswith(("rows/", "side", "names/"))]:
        np.testing.assert_array_equal(arrays[key], expected[key], err_msg=key)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_interrupted_preparation_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that are complete stay; those that are damaged or missing are written again."""
    source = table(tmp_path)
    prepare(source, str(tmp_path / "straight"), shard_mb=SMALL)
    folder = tmp_path / "broken"

    def one_shard(job: Job, shards: Sequence[ShardPlan]) -> Iterator[ShardEntry]:
        yield from in_this_process(job, shards[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, str(folder), shard_mb=SMALL, driver=one_shard)
    (folder / "shard-000001.parquet").write_bytes(b"damaged")
    encoded: list[int] = []
    encode = encode_shard.encode_block

    def counted(source: Files, dataset: TableDataset, number: int) -> encode_shard.PreparedBlock:
        encoded.append(number)
        return encode(source, dataset, number)

    monkeypatch.setattr(encode_shard, "encode_block", counted)
    prepare(source, str(folder), shard_mb=SMALL)
    assert files_in(folder) == files_in(tmp_path / "straight")
    assert 0 not in encoded and 1 in encoded
    encoded.clear()
    prepare(source, str(folder), shard_mb=SMALL)
    assert encoded == []
