"""A Dataset of Ray Data, prepared as it is."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raymtl.data import Files, Prepared
from raymtl.data.prepared.prepare import prepare
from raymtl.distributed import prepare_dataset as of_dataset
from raymtl.distributed.prepare_dataset import prepare_dataset
from raymtl.types import UserError
from tests.data.own import columns, write_parquet
from tests.data.test_prepared import SMALL, files_in
from tests.distributed.local import local_ray

ray = pytest.importorskip("ray")

TASKS: dict[str, Any] = {"level": {"column": "task 0.x"}, "grade": {"column": "task 2.x"}}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    settings = {"SETTINGS": "one=1"}  # a variable that its workers know as well
    with mock.patch.dict(os.environ, settings), local_ray(num_cpus=2, include_dashboard=False):
        yield


def shards_in(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_in(folder).items() if "rows" not in name}


@pytest.mark.slow
def test_a_dataset_becomes_the_shards_of_its_rows_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many blocks Ray has them in; a second call writes nothing anew."""
    monkeypatch.setattr(of_dataset, "FILE_BYTES", 1 << 15)
    path = write_parquet(tmp_path / "own.parquet", columns(1000, tasks=3))
    rows = ray.data.read_parquet(str(path), override_num_blocks=5)
    for _ in range(2):
        manifest = prepare_dataset(rows, {"tasks": TASKS}, str(tmp_path / "out"), shard_mb=SMALL)
    written = sorted((tmp_path / "out" / "rows").glob("rows-*.parquet"))
    row_group_size = pq.read_metadata(written[0]).num_rows
    assert len(written) > 2 and manifest.rows == 1000
    path = write_parquet(tmp_path / "same.parquet", columns(1000, tasks=3), row_group_size)
    prepare(Files(path=str(path), tasks=TASKS).resolve(), str(tmp_path / "same"), shard_mb=SMALL)
    shards = {path.name: path.read_bytes() for path in tmp_path.glob("out/*.parquet")}
    assert shards == {path.name: path.read_bytes() for path in tmp_path.glob("same/*.parquet")}
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/**/*[0-9].parquet")}
    prepare_dataset(rows, {"tasks": TASKS}, str(tmp_path / "out"), shard_mb=SMALL)
    assert times == {path: path.stat().st_mtime_ns for path in times}
    with pytest.raises(UserError, match=r"--output: .*other columns: age \(years\)"):
        prepare_dataset(rows.drop_columns(["age (years)"]), {"tasks": TASKS}, str(tmp_path / "out"))


@pytest.mark.slow
def test_the_example_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a script of its own."""
    page = Path(__file__).parents[2] / "docs" / "data-prepared.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-c", example], check=True)
    arrays = Prepared(path="prepared").resolve().load()
    assert len(arrays["inputs"]) == 400


def test_tensors_of_pictures_are_pictures(tmp_path: Path) -> None:
    """Of different sizes, and without loss; other tensors are vectors."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(40):
        pixels = rng.integers(0, 256, (10 + number % 3, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:02d}.png")
    (tmp_path / "pictures" / "labels.csv").write_text(
        "name,y\n" + "".join(f"{number:02d}.png,{number / 7}\n" for number in range(40))
    )
    files = Files(path=str(tmp_path / "pictures"), tasks={"y": {}}, size=8).resolve()

    def labelled(row: dict[str, Any]) -> dict[str, Any]:
        number = int(Path(row["path"]).stem)
        return {"image": row["image"], "y": number / 7}

    pictures = ray.data.read_images(str(tmp_path / "pictures"), include_paths=True, mode="RGB")
    manifest = prepare_dataset(
        pictures.map(labelled), {"tasks": {"y": {}}, "size": 8}, str(tmp_path / "out")
    )
    assert manifest.files.is_image
    arrays, expected = Prepared(path=str(tmp_path / "out")).resolve().load(), files.load()
    np.testing.assert_array_equal(arrays["inputs"], expected["inputs"])

    vectors = ray.data.from_numpy(rng.normal(size=(60, 5)))
    vectors = vectors.map(lambda row: {"v": row["data"], "y": float(row["data"].sum())})
    manifest = prepare_dataset(vectors, {"tasks": {"y": {}}}, str(tmp_path / "vectors"))
    assert [column.role for column in manifest.files.found.columns] == ["vector"]


def test_mistakes_with_a_dataset_are_told(tmp_path: Path) -> None:
    rows = ray.data.from_items([{"x": float(i), "y": float(i)} for i in range(40)])
    with pytest.raises(UserError, match=r"data\.task: "):
        prepare_dataset(rows, {"task": {"y": {}}}, str(tmp_path / "one"))
    with pytest.raises(UserError, match="dataset: expected rows, got an empty Dataset"):
        prepare_dataset(rows.limit(0), {"tasks": {"y": {}}}, str(tmp_path / "two"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    with pytest.raises(UserError, match=r"which holds chapter1\.tex"):
        prepare_dataset(rows, {"tasks": {"y": {}}}, str(tmp_path / "thesis"))
    assert not (tmp_path / "thesis" / "rows").exists()


def test_the_settings_of_a_url_stay_behind_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a variable they can, but not together with the folder: rows go to a folder below it."""
    rows = ray.data.from_items([{"x": float(one), "y": 2.0 * one} for one in range(40)])
    monkeypatch.setenv("BOTH", f"file://{tmp_path}/out?one=1")
    monkeypatch.setenv("FOLDER", str(tmp_path / "own"))
    with pytest.raises(UserError, match=r"--output: expected a URL whose settings .* got \$BOTH"):
        prepare_dataset(rows, {"tasks": {"y": {}}}, "$BOTH")
    with pytest.raises(UserError, match="--output: expected a folder or a URL"):
        prepare_dataset(rows, {"tasks": {"y": {}}}, " ")
    for output, folder in ((f"file://{tmp_path}/out?$SETTINGS", "out"), ("$FOLDER", "own")):
        manifest = prepare_dataset(rows, {"tasks": {"y": {}}}, output)
        assert manifest.rows == 40
        assert {"rows", "manifest.json"} <= {path.name for path in (tmp_path / folder).iterdir()}
