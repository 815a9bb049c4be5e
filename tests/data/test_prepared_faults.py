"""Prepared data that are damaged, of something else, or made of pictures that kill the decoder."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from raymtl.data import Files, Prepared
from raymtl.data.prepared import encode_shard
from raymtl.data.prepared.prepare import prepare
from raymtl.data.shards import reader
from raymtl.data.tables.probe import DecoderProbe
from raymtl.types import UserError
from tests.data.blood import SIDES, write_voc
from tests.data.own import own_table, write_csv
from tests.data.test_prepared import maps, pictures, prepared, table

Fault = Callable[[Path], None]


def lose(folder: Path) -> None:
    (folder / "shard-000001.parquet").unlink()


def cut(folder: Path) -> None:
    path = folder / "shard-000001.parquet"
    path.write_bytes(path.read_bytes()[:-9])


def flip_bits(folder: Path) -> None:
    """In the middle of each shard, where the numbers are."""
    for path in folder.glob("shard-*.parquet"):
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 255
        path.write_bytes(content)


def age(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 0}))


def change(folder: Path) -> None:
    shutil.rmtree(folder)
    prepared(own_table(folder.parent, split={"seed": 1}), folder)


def edit(folder: Path) -> None:
    """A mean that no reader could tell from the right one."""
    text = (folder / "manifest.json").read_text()
    mean = re.search(r'"mean":\[?(-?\d+\.\d)', text)
    assert mean is not None
    (folder / "manifest.json").write_text(text.replace(mean[1], mean[1] + "1", 1))


def not_finish(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def read_all(source: Prepared) -> list[Tensor]:
    """All training rows, read anew."""
    reader.READERS.clear()
    arrays = source.load()
    batches = [section.batch(section.rows) for section in source.every_example(arrays, "train")]
    return tree_leaves(batches)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lose, "shard-000001.parquet, where there is none"),
        (cut, "shard-000001.parquet, which is damaged"),
        (flip_bits, "which is damaged"),
        (age, "expected prepared data of this version of raymtl"),
        (change, "of another configuration"),
        (edit, "or a damaged one"),
        (not_finish, "which has no manifest.json"),
    ],
)
@pytest.mark.parametrize("in_memory_mb", [None, 0.001])
def test_damaged_data_are_told(
    fault: Fault, says: str, in_memory_mb: float | None, tmp_path: Path
) -> None:
    source = prepared(table(tmp_path), tmp_path / "out", in_memory_mb=in_memory_mb)
    fault(tmp_path / "out")
    with pytest.raises(UserError, match=says):
        read_all(source)


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    """In the descriptions at the ends of files, of which not all have a checksum of their own."""
    source = prepared(table(tmp_path), tmp_path / "out", in_memory_mb=0.001)
    expected = read_all(source)
    rng = np.random.default_rng(0)
    told: list[str] = []
    for name in ("shard-000000.parquet", "index.parquet"):
        path = tmp_path / "out" / name
        content = path.read_bytes()
        for place in rng.integers(len(content) - 3000, len(content), 40).tolist():
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            try:
                for value, right in zip(read_all(source), expected, strict=True):
                    assert torch.equal(value, right)
            except UserError as error:
                told.append(str(error))
        path.write_bytes(content)
    assert len(told) > 50
    assert all("shard-000000.parquet, " in text or "index.parquet, " in text for text in told)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    source = table(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    with pytest.raises(UserError, match=r"--output: .*which holds chapter1\.tex"):
        prepare(source, str(tmp_path / "thesis"))
    with pytest.raises(UserError, match="--output: expected a folder that can be listed"):
        prepare(source, str(tmp_path / "own.parquet"))
    prepare(source, str(tmp_path / "out"))
    other = source.model_copy(update={"fitted": source.found.model_copy(update={"split_by": "x"})})
    with pytest.raises(UserError, match="another configuration"):
        prepare(other, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"tasks": ("nothing",)}, "data.tasks: expected some of level, answer, grade"),
        ({"episodes": "groups"}, "prepared without data.group"),
        ({"episodes": "classes"}, "one prepared task with classes"),
    ],
)
def test_what_was_not_prepared_is_told(keys: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        prepared(table(tmp_path), tmp_path / "out", **keys)


KILLED_BY = """
import sys
while header := sys.stdin.buffer.read(8):
    content = sys.stdin.buffer.read(int.from_bytes(header, "big"))
    if content == open({path!r}, "rb").read():
        sys.exit(1)
    sys.stdout.buffer.write(b".")
    sys.stdout.buffer.flush()
"""


def test_a_picture_that_kills_the_decoder_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the next attempt at its shard."""
    source = pictures(tmp_path)
    killer = sorted((tmp_path / "pictures").rglob("*.png"))[0]
    command = (sys.executable, "-c", KILLED_BY.format(path=str(killer)))
    monkeypatch.setattr(encode_shard, "DecoderProbe", lambda: DecoderProbe(command))
    folder = tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        (folder / f".begun-{number:06d}").touch()
    shards = prepared(source, folder)
    expected, arrays = source.load(), shards.load()
    lost = np.flatnonzero(expected["mask/colour"] & ~arrays["mask/colour"])
    assert len(lost) == 1
    assert any("kills the decoder" in note.text for note in shards.notes(arrays))
    assert not list(folder.glob(".*"))


def boxes(folder: Path) -> tuple[Files, Path]:
    """Pictures with their boxes in XML, and one of these files."""
    write_voc(folder)
    root = folder / "VOCdevkit" / "VOC2007"
    tasks = {"things": {"path": str(root / "Annotations")}}
    source = Files(path=str(root / "JPEGImages"), tasks=tasks, size=SIDES).resolve()
    return source, sorted((root / "Annotations").iterdir())[3]


def joined(folder: Path) -> tuple[Files, Path]:
    """A table, and another one with its labels."""
    numbers = list(range(60))
    write_csv(folder / "rows.csv", {"id": numbers, "x": [0.5 * one for one in numbers]})
    labels = write_csv(folder / "labels.csv", {"id": numbers, "y": [1.5 * one for one in numbers]})
    tasks = {"y": {"path": str(labels)}}
    return Files(path=str(folder / "rows.csv"), key="id", tasks=tasks).resolve(), labels


def depths(folder: Path) -> tuple[Files, Path]:
    """Pictures with maps in folders, and one of the maps."""
    return maps(folder), sorted((folder / "mine" / "depths").iterdir())[3]


@pytest.mark.parametrize("make", [boxes, joined, depths])
def test_changed_files_of_labels_are_noticed_when_prepare_continues(
    make: Callable[[Path], tuple[Files, Path]], tmp_path: Path
) -> None:
    source, labels = make(tmp_path)
    prepare(source, str(tmp_path / "out"))
    (tmp_path / "out" / "manifest.json").unlink()  # as if it had been killed before its end
    prepare(source, str(tmp_path / "out"))
    os.utime(labels, (1, 1))
    with pytest.raises(UserError, match=r"--output: .* files that have changed since"):
        prepare(source, str(tmp_path / "out"))
