"""Maps as labels of the user's own pictures: found, understood, resized with their pictures, and what is refused."""

import io
import json
import re
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raymtl.config import Experiment, load
from raymtl.data import SPLITS, Files
from raymtl.data.episodes import build_episodes, on_device
from raymtl.step.meta_gradient import meta_gradient
from raymtl.tasks.depth import DEPTH
from raymtl.tasks.normals import NORMALS
from raymtl.tasks.segmentation import SEGMENTATION
from raymtl.types import UserError
from tests.data.own import scene, write_csv, write_scenes
from tests.data.test_inspection import inspected
from tests.narrowing import checked, present, shared_inputs


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)


def coded(
    root: Path, maps: list[np.ndarray], ending: str = ".png", sides: tuple[int, int] | None = None
) -> Path:
    """`pictures/N.png`, whose brightness is N, and `maps/N` + ending."""
    for i, values in enumerate(maps):
        shape = sides or (values.shape[0], values.shape[1])
        save(root / "pictures" / f"{i}.png", np.full(shape, i, np.uint8))
        save(root / "maps" / f"{i}{ending}", values)
    return root


def of(
    root: Path, size: int | tuple[int, int] = 8, task: dict[str, Any] | None = None, **values: Any
) -> Files:
    tasks = {"map": {"path": str(root / "maps"), **(task or {})}}
    return Files(path=str(root / "pictures"), size=size, tasks=tasks, **values).resolve()


def random_classes(number: int, height: int, width: int, classes: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, classes, (height, width)).astype(np.uint8) for _ in range(number)]


def in_order(source: Files) -> tuple[np.ndarray, np.ndarray]:
    """Targets and masks in the order of the pictures' brightness."""
    arrays = source.load()
    order = np.argsort(arrays["inputs"][:, 0, 0, 0])
    return arrays["target/map"][order], arrays["mask/map"][order]


def test_seven_kinds_of_labels_train(tmp_path: Path) -> None:
    """From YAML alone."""
    root = write_scenes(tmp_path / "mine")
    tasks = {
        "larger": {}, "tags": {"kind": "multilabel"}, "share": {}, "mask": {"classes": ["floor", "box", "disc"]},
        "depth": {"path": str(root / "depths"), "scale": 0.001, "kind": "depth"},
        "normals": {"path": str(root / "normals")},
    }  # fmt: skip
    chosen = Experiment.model_validate(
        {
            "data": {
                "name": "files",
                "path": str(root),
                "size": (12, 16),
                "queries": 6,
                "tasks": tasks,
            },
            "encoder": {"name": "conv", "channels": [4, 4]},
            "learner": {"name": "maml", "inner_steps": 0},
        }
    ).resolve()
    source = checked(chosen.data, Files)
    assert [fitted.kind for fitted in source.found.tasks.values()] == [
        "binary", "multilabel", "regression", "segmentation", "depth", "normals",
    ]  # fmt: skip
    assert source.found.rows == 40
    assert Experiment.model_validate(chosen.model_dump(mode="json")) == chosen
    arrays = source.load()
    assert arrays["mask/mask"].sum() == 32 and arrays["mask/depth"].all()
    # All three say the same of a pixel, as the scenes are made.
    disc = arrays["target/mask"] == 2
    np.testing.assert_allclose(arrays["target/depth"][disc], 0.7, rtol=1e-6)
    np.testing.assert_allclose(arrays["target/normals"][:, 2][disc], 0.8, atol=1e-3)
    blue = arrays["inputs"][:, 2].astype(int) - arrays["inputs"][:, 0]
    floor = (arrays["target/mask"] == 0) & arrays["mask/mask"][:, None, None]
    assert blue[disc].mean() > 110 and abs(blue[floor].mean()) < 20
    episodes, _ = build_episodes(source, arrays, seed=0, split="train", step=0, indices=range(2))
    algorithm = chosen.build()
    assert (
        meta_gradient(algorithm, algorithm.init_params(), on_device(episodes, "cpu"))
        .losses.isfinite()
        .all()
    )


@pytest.mark.parametrize("size", [(16, 12), (8, 24), (40, 56)])
def test_maps_are_resized_by_nearest_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    maps = random_classes(12, 20, 28)
    targets, _ = in_order(of(coded(tmp_path, maps), size))
    for own, target in zip(maps, targets, strict=True):
        np.testing.assert_array_equal(
            target, Image.fromarray(own).resize((size[1], size[0]), Image.Resampling.NEAREST)
        )


def test_crops_of_maps_and_pictures_agree(tmp_path: Path) -> None:
    """Both show the column that a pixel is from."""
    columns = np.repeat(np.arange(0, 240, 6, dtype=np.uint8)[None], 10, 0)
    for i in range(12):
        save(tmp_path / "pictures" / f"{i}.png", columns)
        save(
            tmp_path / "maps" / f"{i}.png", columns.repeat(2, 0).repeat(2, 1).astype(np.uint16) + 1
        )
    source = of(tmp_path, (10, 10), {"kind": "depth"}, resize="crop")
    arrays = source.load()
    np.testing.assert_array_equal(arrays["target/map"][0] - 1, arrays["inputs"][0, 0])
    assert arrays["inputs"][0, 0, 0, 0] == 90


def test_resizing_keeps_missing_pixels_missing(tmp_path: Path) -> None:
    """No value is made of two."""
    rng = np.random.default_rng(0)
    depths = [
        rng.choice([0.0, np.nan, -1.0, np.inf, 2.0, 5.0], (16, 16)).astype(np.float32)
        for _ in range(12)
    ]
    targets, masks = in_order(of(coded(tmp_path / "d", depths, ".npy"), 7, {"kind": "depth"}))
    assert set(np.unique(targets)) == {0, 2, 5} and masks.all()
    there = np.mean([np.isfinite(d) & (d > 0) for d in depths])
    assert np.mean(targets > 0) == pytest.approx(there, abs=0.06)
    directions = [rng.choice([0.0, 3.0], (16, 16, 1)) * np.array([0.6, 0, -0.8]) for _ in range(12)]
    targets, _ = in_order(of(coded(tmp_path / "n", directions, ".npy"), 7, {"kind": "normals"}))
    lengths = np.linalg.norm(targets.astype(float), axis=1)
    assert set(lengths.round(2).ravel()) == {0, 1}
    np.testing.assert_allclose(targets[:, 2][lengths > 0.5], -0.8, atol=1e-3)


@pytest.mark.parametrize("spelled", ["colours", "channels first", "channels last"])
def test_normals_are_colours_or_numbers(tmp_path: Path, spelled: str) -> None:
    vectors = np.zeros((6, 8, 3))
    vectors[:, :4], vectors[:, 4:7] = (0.6, 0, 0.8), (0, -1, 0)
    spellings: dict[str, np.ndarray] = {
        "colours": np.where(vectors.any(-1, keepdims=True), (vectors + 1) * 127.5, 127)
        .round()
        .astype(np.uint8),
        "channels first": np.moveaxis(2 * vectors, -1, 0),
        "channels last": vectors,
    }
    saved = spellings[spelled]
    source = of(
        coded(tmp_path, [saved] * 12, ".png" if spelled == "colours" else ".npy", (6, 8)),
        (6, 8),
        {"kind": "normals"},
    )
    targets, _ = in_order(source)
    np.testing.assert_allclose(targets[0], np.moveaxis(vectors, -1, 0), atol=0.01)


GREYS = np.arange(96, dtype=np.uint8).reshape(8, 12)
UNIT = np.stack([np.full((8, 12), 0.6), np.zeros((8, 12)), np.full((8, 12), 0.8)], -1)


@pytest.mark.parametrize(
    ("values", "ending", "kind"),
    [
        (GREYS % 5, ".png", "segmentation"),
        (GREYS % 2 == 0, ".png", "segmentation"),
        ((GREYS % 5).astype(np.int64) - 1, ".npy", "segmentation"),
        (GREYS.astype(np.uint16) * 100, ".png", "depth"),
        (GREYS / 7, ".npy", "depth"),
        (GREYS[..., None] / 7, ".npy", "depth"),
        (GREYS.astype(np.float32) / 7, ".tif", "depth"),
        (UNIT, ".npy", "normals"),
        (((UNIT + 1) * 127.5).astype(np.uint8), ".png", "normals"),
    ],
)
def test_the_kind_of_maps_is_inferred(
    tmp_path: Path, values: np.ndarray, ending: str, kind: str
) -> None:
    source = of(coded(tmp_path, [values] * 12, ending), (8, 12))
    assert (source.found.tasks["map"].kind, source.found.tasks["map"].inferred) == (kind, True)
    assert source.make_tasks()[0].kind.name == kind


@pytest.mark.parametrize(
    ("values", "ending", "says"),
    [
        (
            GREYS * 2,
            ".png",
            "got 96 different greys. Say data.tasks.map.kind: segmentation, depth or normals",
        ),
        (
            np.stack([GREYS, 0 * GREYS, GREYS], -1),
            ".png",
            "or one of a few colours a pixel, or directions, got others",
        ),
        (
            np.zeros((8, 12), np.uint8),
            ".png",
            r"expected maps of two classes at least, got \[0\] in",
        ),
    ],
)
def test_maps_of_unclear_kind_are_refused(
    tmp_path: Path, values: np.ndarray, ending: str, says: str
) -> None:
    """The error says what to write."""
    with pytest.raises(UserError, match=rf"data.tasks.map.*maps/\d+.png: .*{says}"):
        of(coded(tmp_path, [values] * 12, ending))


@pytest.mark.parametrize(
    ("there", "task", "classes", "values", "ignored"),
    [
        ([0, 1, 2], {}, ("0", "1", "2"), (0, 1, 2), ()),
        ([0, 255], {}, ("0", "255"), (0, 255), ()),
        ([0, 255], {"classes": ["sky", "cell"]}, ("sky", "cell"), (0, 255), ()),
        ([0, 128, 255], {}, ("0", "128", "255"), (0, 128, 255), ()),
        ([0, 15, 255], {}, ("0", "15"), (0, 15), (255,)),
        ([0, 2, 255], {"classes": ["a", "b", "c"]}, ("a", "b", "c"), (0, 1, 2), (255,)),
        ([1, 2, 255], {"classes": [2, 1]}, ("2", "1"), (2, 1), (255,)),
        ([0, 1, 2], {"ignore": 0}, ("1", "2"), (1, 2), (0,)),
        (
            [0, 50, 99],
            {"values": [50, 99], "classes": ["x", "y"], "ignore": [0, 7]},
            ("x", "y"),
            (50, 99),
            (0, 7),
        ),
    ],
)
def test_numbers_of_classes_are_given_or_found(
    tmp_path: Path,
    there: list[int],
    task: dict[str, Any],
    classes: tuple[str, ...],
    values: tuple[int, ...],
    ignored: tuple[int, ...],
) -> None:
    rng = np.random.default_rng(0)
    maps = [
        rng.permutation(np.resize(np.array(there, np.uint8), 48)).reshape(6, 8) for _ in range(12)
    ]
    source = of(coded(tmp_path, maps), (6, 8), {"kind": "segmentation", **task})
    fitted = source.found.tasks["map"]
    assert (fitted.classes, fitted.values, fitted.ignored) == (classes, values, ignored)
    targets, _ = in_order(source)
    for own, target in zip(maps, targets, strict=True):
        for value in there:
            assert set(target[own == value]) == {values.index(value) if value in values else -1}


def test_statistics_are_of_the_rows_for_training_alone(tmp_path: Path) -> None:
    maps = [np.full((6, 6), 100 * (i + 1), np.uint16) for i in range(20)]
    maps[3][:3] = 0
    source = of(coded(tmp_path, maps), 6, {"kind": "depth", "scale": 0.01})
    arrays = source.load()
    train = [maps[i] for i in arrays["inputs"][arrays["rows/train"]][:, 0, 0, 0]]
    known = np.concatenate([values[values > 0] for values in train]) / 100
    fitted = source.found.tasks["map"]
    assert fitted.means[0] == pytest.approx(known.mean()) and fitted.stds[0] == pytest.approx(
        known.std()
    )
    held_out = np.concatenate([arrays[f"rows/{split}"] for split in ("val", "test")])
    maps[arrays["inputs"][held_out[0], 0, 0, 0]][:] = 60000
    assert (
        of(coded(tmp_path, maps), 6, {"kind": "depth", "scale": 0.01}).found.tasks["map"] == fitted
    )


def test_maps_match_pictures_by_name(tmp_path: Path) -> None:
    maps = random_classes(20, 6, 6)
    root = coded(tmp_path, maps)
    for i in range(20):
        (root / "maps" / f"{i}.png").rename(root / "maps" / f"part_{i}_mask.png")
    (root / "maps" / "part_3_mask.png").unlink()
    source = Files(
        path=str(root / "pictures"),
        size=6,
        tasks={"map": {"path": str(root / "maps" / "part_*_mask.png")}},
    ).resolve()
    targets, masks = in_order(source)
    assert masks.tolist() == [i != 3 for i in range(20)]
    for i in set(range(20)) - {3}:
        np.testing.assert_array_equal(targets[i], maps[i])


def test_maps_match_pictures_by_folder(tmp_path: Path) -> None:
    for i, (folder, name) in enumerate((f, n) for f in "ab" for n in range(20)):
        save(tmp_path / "p" / folder / f"{name}.jpg", np.full((6, 6), 6 * i, np.uint8))
        save(tmp_path / "m" / folder / f"{name}.png", np.full((6, 6), i % 4, np.uint8))
    tasks = {"map": {"path": str(tmp_path / "m")}}
    source = Files(
        path=str(tmp_path / "p"), size=6, tasks=tasks, split={"fractions": (2, 1, 1)}
    ).resolve()
    targets, masks = in_order(source)
    assert masks.all() and targets[:, 0, 0].tolist() == [i % 4 for i in range(40)]
    for i in range(20):  # without the folder it is not clear whose they are
        (tmp_path / "m" / "a" / f"{i}.png").rename(tmp_path / "m" / f"{i}.png")
    half = Files(
        path=str(tmp_path / "p"), size=6, tasks=tasks, split={"fractions": (2, 1, 1)}
    ).resolve()
    assert in_order(half)[1].tolist() == [False] * 20 + [True] * 20


def test_maps_beside_pictures_are_no_pictures(tmp_path: Path) -> None:
    maps = random_classes(12, 6, 6)
    source = Files(
        path=str(coded(tmp_path, maps)), size=6, tasks={"map": {"path": str(tmp_path / "maps")}}
    ).resolve()
    assert source.found.rows == 12
    for own, target in zip(maps, in_order(source)[0], strict=True):
        np.testing.assert_array_equal(target, own)


@pytest.mark.parametrize("form", ["names", "names below a folder", "bytes", "lists", "struct"])
def test_maps_stand_in_a_table(tmp_path: Path, form: str) -> None:
    maps = random_classes(20, 6, 8)
    root = coded(tmp_path, maps)
    contents = [(root / "maps" / f"{i}.png").read_bytes() for i in range(20)]
    forms: dict[str, list[Any]] = {
        "names": [f"maps/{i}.png" for i in range(20)],
        "names below a folder": [f"{i}.png" for i in range(20)],
        "bytes": contents,
        "lists": [m.tolist() for m in maps],
        "struct": [{"bytes": None, "path": f"maps/{i}.png"} for i in range(20)],
    }
    values = forms[form]
    values[5] = None
    table = {"image": [f"pictures/{i}.png" for i in range(20)], "map": values}
    pq.write_table(pa.table(table), root / "table.parquet", row_group_size=5)
    task = (
        {"path": str(root / "maps"), "column": "map", "kind": "segmentation"}
        if "below" in form
        else {}
    )
    source = Files(path=str(root / "table.parquet"), size=(6, 8), tasks={"map": task}).resolve()
    assert source.found.tasks["map"].kind == "segmentation"
    assert [column.column for column in source.found.columns] == ["image"]
    targets, masks = in_order(source)
    assert masks.tolist() == [i != 5 for i in range(20)]
    for i in set(range(20)) - {5}:
        np.testing.assert_array_equal(targets[i], maps[i])


def test_missing_maps_are_named(tmp_path: Path) -> None:
    """Those that cannot be read are counted."""
    root = coded(tmp_path, random_classes(20, 6, 6))
    write_csv(
        root / "t.csv",
        {
            "image": [f"pictures/{i}.png" for i in range(20)],
            "map": [f"maps/{i}.png" for i in range(20)],
        },
    )
    (root / "maps" / "7.png").unlink()
    (root / "maps" / "9.png").write_bytes(b"\x89PNG no picture")
    source = Files(path=str(root / "t.csv"), size=6, tasks={"map": {}}, max_corrupt=0.1).resolve()
    masks = in_order(source)[1]
    assert np.flatnonzero(~masks).tolist() == [7, 9]
    said = str(source.notes(source.load()))
    assert "1 maps are not there: maps/7.png of task 'map'" in said
    assert "maps/9.png (no picture)" in said
    with pytest.raises(
        UserError, match=r"data.max_corrupt: 1 of 20 pictures cannot be read: .*maps/9.png"
    ):
        source.model_copy(update={"max_corrupt": 0.01}).load()


def test_maps_of_other_proportions_are_refused(
    tmp_path: Path,
) -> None:
    """A map of another size is resized where its proportion fits."""
    maps = random_classes(12, 6, 8)
    root = coded(tmp_path, maps)
    expected, _ = in_order(of(root, (6, 8)))
    names = {
        "image": [f"pictures/{i}.png" for i in range(12)],
        "map": [f"maps/{i}.png" for i in range(12)],
    }
    write_csv(root / "t.csv", names)
    save(root / "maps" / "4.png", maps[4].repeat(3, 0).repeat(3, 1))
    source = Files(path=str(root / "t.csv"), size=(6, 8), tasks={"map": {}}).resolve()
    np.testing.assert_array_equal(in_order(source)[0], expected)
    save(root / "maps" / "4.png", maps[4].T)
    with pytest.raises(
        UserError,
        match=r"maps/4.png, column 'map': expected a map of the proportion .* 6 x 8 pixels, got 8 x 6",
    ):
        source.load()


@pytest.mark.parametrize(
    ("value", "task", "says"),
    [
        (
            7,
            {},
            r"maps/\d+.png: expected a class of task 'map' in every pixel, one of 0, 1, 2, got 7 in 1 pixels",
        ),
        (7, {"classes": ["a", "b", "c"]}, "one of 0, 1, 2, got 7 in 1 pixels"),
        (0.5, {}, r"maps/\d+.npy: expected whole numbers, those of classes, got 0.5"),
    ],
)
def test_values_outside_the_classes_name_their_file(
    tmp_path: Path, value: float, task: dict[str, Any], says: str
) -> None:
    maps = [
        values.astype(np.float32 if value < 1 else np.uint8) for values in random_classes(20, 6, 6)
    ]
    ending = ".npy" if value < 1 else ".png"
    source = of(coded(tmp_path, maps, ending), 6, {"kind": "segmentation", **task})
    arrays = source.load()
    for split in ("train", "val"):
        odd = [values.copy() for values in maps]
        odd[arrays["inputs"][arrays[f"rows/{split}"][0], 0, 0, 0]][2, 2] = value
        coded(tmp_path, odd, ending)
        with pytest.raises(UserError, match=says):
            source.load()


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (
            {"kind": "segmentation", "scale": 2},
            "data.tasks.map.scale: expected none of kind segmentation",
        ),
        ({"kind": "depth", "ignore": 0}, "data.tasks.map.ignore: expected none of kind depth"),
        ({"kind": "normals"}, r"maps/\d+.png: expected three numbers for every pixel"),
        ({"classes": ["a", "a", "b"]}, "data.tasks.map.classes: expected every class once"),
        (
            {"classes": ["a", "b"], "values": [0, 1, 2]},
            "data.tasks.map.values: expected a number of its own for each",
        ),
        (
            {"values": [0, 1, 2], "ignore": 2},
            "data.tasks.map.values: expected .* none of them ignored",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, task: dict[str, Any], says: str
) -> None:
    maps = [values.astype(np.uint16) for values in random_classes(12, 6, 6)]
    with pytest.raises(UserError, match=says):
        of(coded(tmp_path, maps), 6, task).load()


def test_maps_need_pictures_and_names(tmp_path: Path) -> None:
    root = coded(tmp_path, random_classes(12, 6, 6))
    write_csv(
        root / "t.csv",
        {"x": [i / 3 for i in range(12)], "map": [f"maps/{i}.png" for i in range(12)]},
    )
    with pytest.raises(
        UserError, match=r"data.tasks.map: expected inputs that are pictures, .* got number"
    ):
        Files(path=str(root / "t.csv"), tasks={"map": {}}).resolve()
    with pytest.raises(
        UserError, match=r"data.tasks.map.path: expected a column with the names of pictures"
    ):
        Files(
            path=str(root / "t.csv"), tasks={"map": {"path": str(root / "maps")}}, inputs=["x"]
        ).resolve()
    write_csv(
        root / "t.csv",
        {
            "image": [f"pictures/{i}.png" for i in range(12)],
            "map": [f"gone/{i}.png" for i in range(12)],
        },
    )
    with pytest.raises(
        UserError,
        match=r"data.tasks.map: expected maps in the rows for training, got none in 8 rows",
    ):
        Files(path=str(root / "t.csv"), tasks={"map": {}}).resolve()


def test_streamed_maps_equal_those_in_memory(tmp_path: Path) -> None:
    maps = random_classes(140, 6, 6)
    root = coded(tmp_path, maps)
    source = of(root, 6, in_memory_mb=0.03, fit_rows=140, hold_steps=2, queries=8)
    assert source.found.pool is not None and of(root, 6).found.pool is None
    arrays = source.load()
    seen = set()
    for step in range(4):
        (stack,), _ = build_episodes(
            source, arrays, seed=0, split="train", step=step, indices=range(2)
        )
        brightness = shared_inputs(stack.query)[:, :, 0, 0, 0].flatten().tolist()
        for number, target in zip(
            brightness, stack.query.targets["map"].flatten(0, 1), strict=True
        ):
            np.testing.assert_array_equal(target, maps[number])
            seen.add(number)
    assert len(seen) > 16


def test_inspection_tells_class_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And paints the maps."""
    maps = [np.repeat(np.array([[0, 1, 1, 2, 2, 2, 2, 255]], np.uint8), 8, 0)] * 20
    coded(tmp_path, maps)
    file = tmp_path / "c.yaml"
    data = {
        "name": "files",
        "path": str(tmp_path / "pictures"),
        "size": 8,
        "tasks": {"map": {"path": str(tmp_path / "maps")}},
    }
    file.write_text(
        json.dumps(
            {"data": data, "encoder": {"name": "conv", "channels": [4]}, "output": str(tmp_path)}
        )
    )
    told = json.loads(
        inspected(monkeypatch, capsys, str(file), "--json", "--picture", str(tmp_path / "b.png"))
    )
    expected = {
        "place": "task 'map'",
        "text": "255 in a map says nothing",
        "key": "data.tasks.map.ignore",
    }
    assert told["notes"] == [expected]
    for split in SPLITS:
        balance = told["tasks"]["map"]["splits"][split]["balance"]
        assert balance == pytest.approx({"labelled": 7 / 8, "0": 1 / 7, "1": 2 / 7, "2": 4 / 7})
    colours = SEGMENTATION.render(np.array([[0, 1, 2, -1]]))[0].tolist()
    with Image.open(tmp_path / "b.png") as picture:
        drawn = {tuple(pixel) for pixel in np.asarray(picture).reshape(-1, 3).tolist()}
    assert len({tuple(c) for c in colours}) == 4 and {tuple(c) for c in colours} <= drawn


def test_missing_pixels_are_painted_black() -> None:
    """Near depths are bright."""
    depth = DEPTH.render(np.array([[0, 1.0, 2.0, np.nan]]))[0].astype(int).sum(-1)
    assert depth[0] == depth[3] == 0 < depth[2] < depth[1]
    normals = NORMALS.render(np.array([[0, 0.0], [0, 0.0], [0, 2.0]])[:, None])
    assert normals[0].tolist() == [[0, 0, 0], [127, 127, 255]]


def test_a_palette_gives_the_numbers_of_its_colours(tmp_path: Path) -> None:
    maps = random_classes(12, 6, 6)
    root = coded(tmp_path, maps)
    for i, values in enumerate(maps):
        picture = Image.fromarray(values).convert("P")
        picture.putdata(values.ravel().tolist())
        picture.putpalette([255, 0, 0, 0, 255, 0, 9, 9, 9])
        stream = io.BytesIO()
        picture.save(stream, "png")
        (root / "maps" / f"{i}.png").write_bytes(stream.getvalue())
    np.testing.assert_array_equal(
        torch.from_numpy(in_order(of(root, 6))[0]).numpy(), np.stack(maps)
    )


def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "data-pictures.md"
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S)
    (block,) = [block for block in blocks if "depths" in block]
    rng = np.random.default_rng(0)
    rows = []
    for i in range(30):
        found = scene(rng, 96, 128)
        for folder, name, values in (
            ("images", f"{i:03d}.jpg", found["image"]), ("masks", f"{i:03d}.png", found["mask"]),
            ("depths", f"{i:03d}.png", found["depth"]), ("normals", f"{i:03d}_n.npy", found["normals"]),
        ):  # fmt: skip
            save(tmp_path / "scenes" / folder / name, values)
        rows.append(
            (
                f"images/{i:03d}.jpg",
                ("sun", "rain")[i % 2],
                ("a|b", "b")[i % 2],
                i / 4,
                f"masks/{i:03d}.png",
            )
        )
    names = ("image", "weather", "tags", "count", "mask")
    write_csv(
        tmp_path / "scenes" / "labels.csv", dict(zip(names, zip(*rows, strict=True), strict=True))
    )
    (tmp_path / "c.yaml").write_text(block)
    monkeypatch.chdir(tmp_path)
    chosen = load(tmp_path / "c.yaml")
    found_data = present(checked(chosen.data, Files).found)
    assert found_data.rows == 30
    tasks = found_data.tasks
    assert {name: task.kind for name, task in tasks.items() if task.kind in ("segmentation", "depth", "normals")} == {
        "mask": "segmentation", "depth": "depth", "normals": "normals",
    }  # fmt: skip
    assert 0.7 < tasks["depth"].means[0] < 4  # metres
    assert all(chosen.data.load()[f"mask/{name}"].all() for name in tasks)
    assert len(chosen.build().tasks) == 6


def test_maps_of_a_key_lie_anywhere(tmp_path: Path) -> None:
    maps = random_classes(20, 6, 6)
    root = coded(tmp_path, maps)
    names = {"id": [f"p{i}" for i in range(20)], "image": [f"pictures/{i}.png" for i in range(20)]}
    write_csv(root / "t.csv", names)
    memory = fsspec.filesystem("memory")
    for i in range(20):
        memory.pipe_file(f"/own-maps/p{i}.png", (root / "maps" / f"{i}.png").read_bytes())
    source = Files(
        path=str(root / "t.csv"),
        size=6,
        key="id",
        inputs=["image"],
        tasks={"map": {"path": "memory://own-maps"}},
    ).resolve()
    targets, masks = in_order(source)
    assert masks.all()
    np.testing.assert_array_equal(targets, np.stack(maps))


@pytest.mark.parametrize("given", [False, True])
def test_colours_are_classes_where_they_are_few(tmp_path: Path, given: bool) -> None:
    """One of the maps has nothing but black and white, which are colours all the same."""
    colours = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255]], np.uint8)
    maps = random_classes(20, 6, 6, 4)
    maps[3] %= 2
    task = (
        {"values": [0x0000FF, 0xFF0000, 0xFFFFFF], "classes": ["sea", "fire", "ice"], "ignore": 0}
        if given
        else {}
    )
    source = of(coded(tmp_path, [colours[values] for values in maps]), 6, task)
    fitted = source.found.tasks["map"]
    order = [0xFF, 0xFF0000, 0xFFFFFF] if given else [0, 0xFF, 0xFF0000, 0xFFFFFF]
    assert fitted.colours and fitted.values == tuple(order)
    assert fitted.classes == (
        ("sea", "fire", "ice") if given else ("#000000", "#0000ff", "#ff0000", "#ffffff")
    )
    place = np.array([order.index(v) if v in order else -1 for v in (0, 0xFFFFFF, 0xFF0000, 0xFF)])
    targets, _ = in_order(source)
    for own, target in zip(maps, targets, strict=True):
        np.testing.assert_array_equal(target, place[own])
    with pytest.raises(
        UserError,
        match=r"data.tasks.map.values: .*expected the colours that stand for \['a', 'b'\]",
    ):
        of(tmp_path, 6, {"classes": ["a", "b"]})
    maps[5][0, 0] = 4
    coded(
        tmp_path,
        [np.concatenate([colours, [[1, 2, 3]]]).astype(np.uint8)[values] for values in maps],
    )
    with pytest.raises(
        UserError, match=r"maps/5.png: expected a class .*, got #010203 in 1 pixels"
    ):
        source.load()


def test_grey_saved_as_colour_is_a_number(tmp_path: Path) -> None:
    maps = random_classes(20, 6, 6)
    source = of(coded(tmp_path, [np.repeat(values[..., None], 3, -1) for values in maps]), 6)
    assert source.found.tasks["map"].values == (0, 1, 2) and not source.found.tasks["map"].colours
    np.testing.assert_array_equal(in_order(source)[0], np.stack(maps))
