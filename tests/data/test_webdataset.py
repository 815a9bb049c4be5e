"""Tar files of WebDataset: samples are rows, as a folder of the same pictures has them."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raymtl.data import Files
from raymtl.data.tables import webdataset
from raymtl.types import UserError

SAMPLES = 30


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def samples(number: int = SAMPLES) -> list[dict[str, bytes]]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(number):
        dark = i % 2
        pixels = rng.integers(0, 100 + 100 * dark, (8, 8, 3), np.uint8)
        about = {"weight": float(i), "kind": "dark" if dark else "light"}
        found.append(
            {
                ["png", "PNG"][i % 2]: png(pixels),
                "cls": str(dark).encode(),
                "txt": f"picture {i}".encode(),
                "json": json.dumps(about if i % 7 else {}).encode(),
                "seg.png": png(pixels[..., 0] // 128),
            }
        )
    return found


def write(path: Path, members: list[dict[str, bytes]], start: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for i, sample in enumerate(members, start):
            for ending, content in sample.items():
                info = tarfile.TarInfo(f"all/{i:04d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def source(path: Path, tasks: Mapping[str, Any] | None = None, **values: Any) -> Files:
    chosen = tasks or {"cls": {}, "weight": {}, "kind": {}, "seg": {"column": "seg.png"}}
    return Files(
        path=str(path), tasks=chosen, inputs={"image": "picture"}, size=8, shots=2, queries=3, **values
    ).resolve()  # fmt: skip


def test_samples_are_rows_with_all_labels(tmp_path: Path) -> None:
    given = samples()
    write(tmp_path / "a.tar", given[:20])
    write(tmp_path / "b.tar", given[20:], start=20)
    own = source(tmp_path)
    arrays = own.load()
    for i, sample in enumerate(given):
        picture = np.array(Image.open(io.BytesIO(next(iter(sample.values())))))
        np.testing.assert_array_equal(arrays["inputs"][i], picture.transpose(2, 0, 1))
        assert arrays["target/cls"][i] == i % 2
        known = i % 7 != 0
        assert arrays["mask/weight"][i] == arrays["mask/kind"][i] == known
        if known:
            assert arrays["target/weight"][i] == i
        np.testing.assert_array_equal(
            arrays["target/seg"][i], np.array(Image.open(io.BytesIO(sample["seg.png"])))
        )


def test_blocks_are_some_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the blocks, the rows are the same."""
    path = write(tmp_path / "a.tar", samples())
    whole = source(path).load()
    monkeypatch.setattr(webdataset, "BLOCK_SAMPLES", 7)
    monkeypatch.setattr(webdataset, "_INDEXES", type(webdataset._INDEXES)(webdataset._index_of))
    parts = source(path)
    assert parts.found.rows == SAMPLES
    for key, values in parts.load().items():
        np.testing.assert_array_equal(values, whole[key])


def test_what_is_no_sample_is_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", samples())
    with tarfile.open(path, "a") as archive:
        for name in ("all/.DS_Store", "README"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert source(path).found.rows == SAMPLES


@pytest.mark.parametrize(
    ("member", "content", "sentence"),
    [
        ("cls", b"two", r"sample all/0003: 'cls': expected a whole number"),
        ("json", b"[1]", r"sample all/0003: 'json': expected a JSON object"),
        ("json", b"{", r"sample all/0003: 'json': expected a JSON object"),
        ("txt", b"\xff", r"sample all/0003: 'txt': expected a text in utf8"),
        ("json", b'{"weight": "heavy"}', r"'weight' in JSON objects: expected one type"),
        ("json", b'{"cls": 1}', r"got 'cls' as a member and in a JSON object"),
        ("jpg", b"x", r"sample all/0003: expected one member 'image', got two"),
    ],
)
def test_wrong_members_are_told(tmp_path: Path, member: str, content: bytes, sentence: str) -> None:
    given = samples()
    given[3] = {**given[3], member: content}
    with pytest.raises(UserError, match=rf"a\.tar: .*{sentence}"):
        source(write(tmp_path / "a.tar", given))


def test_other_archives_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", samples())
    with tarfile.open(tmp_path / "b.tar", "w:gz") as archive:
        archive.add(path)
    with pytest.raises(UserError, match=r"b\.tar: expected a tar file of WebDataset"):
        source(tmp_path / "b.tar")
