"""Folders of the user's own pictures: decoding, labels beside them, and what cannot be read."""

import io
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raymtl.config import Experiment
from raymtl.data import SPLITS, Files
from raymtl.data.episodes import build_episodes, on_device
from raymtl.data.tables.dataset import TableDataset
from raymtl.data.tables.new_rows import read_unseen
from raymtl.data.tables.pictures import channels_of, decoded
from raymtl.data.tables.schema import Shades
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import UserError
from tests.data.own import PICTURE_TASKS, write_csv, write_pictures
from tests.narrowing import checked, shared_inputs


def png(pixels: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels, mode).save(stream, "png", **options)
    return stream.getvalue()


def plain_pictures(root: Path, number: int = 40) -> Path:
    """Grey pictures, each of one brightness, in two folders."""
    for i in range(number):
        folder = root / ("dark", "light")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(png(np.full((9, 12), 2 * i + 100 * (i % 2), np.uint8)))
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("own") / "Bilder 1.0")


def test_pictures_of_all_kinds_train(pictures: Path) -> None:
    """With four kinds of labels."""
    data = {"name": "files", "path": str(pictures), "size": 12, "tasks": PICTURE_TASKS}
    chosen = Experiment.model_validate(
        {
            "data": data,
            "encoder": {"name": "conv", "channels": [4, 4]},
            "learner": {"name": "maml", "inner_steps": 1},
        }
    ).resolve()
    source = checked(chosen.data, Files)
    assert {name: task.kind for name, task in source.found.tasks.items()} == {
        "colour": "classification",
        "wide": "binary",
        "width": "regression",
        "tags": "multilabel",
        "count": "classification",
    }
    assert source.input_shape == (3, 12, 12)
    assert source.found.tasks["tags"].classes == ("small", "tall", "wide")
    arrays = source.load()
    assert all(0.6 < arrays[f"mask/{name}"].mean() < 1 for name in PICTURE_TASKS)
    colours = source.found.tasks["colour"].classes
    inputs = arrays["inputs"].astype(float).mean((2, 3))
    red = (
        arrays["mask/colour"]
        & (arrays["target/colour"] == colours.index("red"))
        & (np.ptp(inputs, 1) > 40)
    )
    assert red.sum() > 3 and (inputs[red].argmax(1) == 0).all()
    episodes, _ = build_episodes(source, arrays, seed=0, split="train", step=0, indices=range(2))
    algorithm = chosen.build()
    assert (
        meta_gradient(algorithm, algorithm.init_params(), on_device(episodes, "cpu"))
        .losses.isfinite()
        .all()
    )


def test_labels_come_from_the_pictures_row(pictures: Path) -> None:
    source = Files(
        path=str(pictures), size=4, tasks={"colour": {}, "folder": {"column": "folder1"}}
    ).resolve()
    arrays = source.load()
    known = arrays["mask/colour"]
    assert source.found.tasks["colour"].classes == source.found.tasks["folder"].classes
    np.testing.assert_array_equal(arrays["target/colour"][known], arrays["target/folder"][known])


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    """The folder is the class."""
    source = Files(
        path=str(plain_pictures(tmp_path)), size=(4, 6), tasks={"light": {"column": "folder"}}
    ).resolve()
    assert source.input_shape == (1, 4, 6)
    arrays = source.load()
    assert source.found.tasks["light"].classes == ("dark", "light")
    np.testing.assert_array_equal(arrays["target/light"], arrays["inputs"][:, 0, 0, 0] >= 100)


def test_folders_named_as_splits_are_the_splits(tmp_path: Path) -> None:
    for split, number in (("train", 20), ("valid", 8), ("test", 6)):
        plain_pictures(tmp_path / split, number)
    source = Files(path=str(tmp_path), size=4, tasks={"light": {"column": "folder"}}).resolve()
    arrays = source.load()
    assert [len(arrays[f"rows/{split}"]) for split in SPLITS] == [20, 8, 6]
    assert "folder1" not in source.found.left_out


def test_a_table_can_name_the_pictures(tmp_path: Path) -> None:
    plain_pictures(tmp_path / "p")
    names = [f"p/{('dark', 'light')[i % 2]}/{i}.png" for i in range(40)]
    write_csv(tmp_path / "table.csv", {"which": names, "value": [i / 2 for i in range(40)]})
    source = Files(path=str(tmp_path / "table.csv"), size=4, tasks={"value": {}}).resolve()
    arrays = source.load()
    assert source.is_image
    np.testing.assert_array_equal(arrays["target/value"] * 4 % 200, 2.0 * np.arange(40) % 200)
    np.testing.assert_array_equal(
        arrays["inputs"][:, 0, 0, 0], [2 * i + 100 * (i % 2) for i in range(40)]
    )


def test_pictures_can_stand_in_the_table(tmp_path: Path) -> None:
    contents = [png(np.full((5, 5), i, np.uint8)) for i in range(40)]
    for values in (contents, [{"bytes": content, "path": None} for content in contents]):
        pq.write_table(pa.table({"image": values, "y": np.arange(40) / 3}), tmp_path / "t.parquet")
        source = Files(path=str(tmp_path / "t.parquet"), size=3, tasks={"y": {}}).resolve()
        assert source.load()["inputs"][:, 0, 1, 1].tolist() == list(range(40))


def test_transparent_pixels_become_white() -> None:
    """16 bits become 8."""
    half = np.zeros((6, 6, 4), np.uint8)
    half[:, 3:, 3] = 255
    shown = decoded(png(half), (6, 6), 3, "stretch")
    assert (shown[:, :, 0] == 255).all() and (shown[:, :, 5] == 0).all()
    deep = (np.arange(36).reshape(6, 6) * 1800).astype(np.uint16)
    scale = Shades(black=0, white=65535)
    np.testing.assert_allclose(
        decoded(png(deep), (6, 6), 1, "stretch", scale)[0], deep / 257, atol=0.5
    )
    palette = Image.fromarray(half[..., :3]).convert("P")
    stream = io.BytesIO()
    palette.save(stream, "png", transparency=palette.getpixel((0, 0)))
    assert (decoded(stream.getvalue(), (6, 6), 3, "stretch") == 255).all()
    assert (
        channels_of([png(deep)]) == 1
        and channels_of([png(deep), stream.getvalue()]) == 3
        and channels_of([b""]) == 1
    )


def test_stretching_keeps_all_and_cropping_the_proportion() -> None:
    wide = np.repeat(np.linspace(0, 240, 40, dtype=np.uint8)[None], 10, 0)
    stretched, cropped = (decoded(png(wide), (10, 10), 1, how)[0, 5] for how in ("stretch", "crop"))
    assert stretched[0] < 15 and stretched[-1] > 225
    np.testing.assert_array_equal(cropped, wide[0, 15:25])


def test_unreadable_pictures_are_counted_and_omitted(tmp_path: Path) -> None:
    """They are named; up to a share of all."""
    root = plain_pictures(tmp_path, 40)
    (root / "dark" / "0.png").write_bytes(b"\x89PNG no picture")
    whole = (root / "light" / "1.png").read_bytes()
    (root / "light" / "1.png").write_bytes(whole[: len(whole) // 2])
    source = Files(
        path=str(root), size=4, tasks={"light": {"column": "folder"}}, max_corrupt=0.05
    ).resolve()
    arrays = source.load()
    assert "2 of 40 pictures cannot be read: dark/0.png (no picture); light/1.png" in str(
        source.notes(arrays)
    )
    drawn = np.concatenate([arrays[f"rows/{split}"] for split in SPLITS])
    assert len(drawn) == 38
    assert arrays["inputs"].reshape(40, -1).max(1)[~arrays["mask/light"]].tolist() == [0, 0]
    with pytest.raises(
        UserError,
        match=r"data.max_corrupt: 2 of 40 pictures cannot be read: .*, which is over 1.0%",
    ):
        Files(path=str(root), size=4, tasks={"light": {"column": "folder"}}).resolve().load()


def test_missing_pictures_count_as_unreadable(
    tmp_path: Path,
) -> None:
    """Those that a table names."""
    plain_pictures(tmp_path / "p", 20)
    names = [f"p/{('dark', 'light')[i % 2]}/{i}.png" for i in range(20)] + ["p/gone.png"]
    write_csv(tmp_path / "t.csv", {"which": names, "y": [i / 2 for i in range(21)]})
    with pytest.raises(UserError, match=r"1 of 21 pictures cannot be read: p/gone.png"):
        Files(path=str(tmp_path / "t.csv"), size=4, tasks={"y": {}}).resolve().load()


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (
            {"name": ["a.png", "b.png"], "y": [0.1, 0.2]},
            r"labels.csv: expected a column with the names of the pictures",
        ),
        (
            {"name": ["dark/0.png"] * 2, "y": [0.1, 0.2]},
            r"labels.csv: row 1, column 'name': expected each picture once",
        ),
    ],
)
def test_labels_unfit_for_pictures_are_told(
    tmp_path: Path, labels: dict[str, Any], says: str
) -> None:
    write_csv(plain_pictures(tmp_path) / "labels.csv", labels)
    with pytest.raises(UserError, match=says):
        Files(path=str(tmp_path), size=4, tasks={"y": {}}).resolve()


def test_names_may_stand_without_folder_or_ending(tmp_path: Path) -> None:
    root = plain_pictures(tmp_path)
    write_csv(
        root / "labels.csv", {"id": [str(i) for i in range(40)], "y": [i * 1.5 for i in range(40)]}
    )
    arrays = Files(path=str(root), size=4, tasks={"y": {}}).resolve().load()
    brightness = arrays["inputs"][:, 0, 0, 0].astype(float)
    number = np.where(brightness % 4 == 2, (brightness - 100) / 2, brightness / 2)
    np.testing.assert_allclose(arrays["target/y"], number * 1.5)
    assert torch.is_tensor(torch.from_numpy(brightness))


def test_tables_find_pictures_below_them(
    tmp_path: Path,
) -> None:
    """Beside masks and boxes of the same names."""
    rng = np.random.default_rng(0)
    names = [f"p{i:02d}.png" for i in range(30)]
    for folder in ("pictures", "masks"):
        (tmp_path / folder).mkdir()
    boxes = {
        "image": names,
        "what": ["a", "b"] * 15,
        "left": [1] * 30,
        "top": [2] * 30,
        "x2": [9] * 30,
        "y2": [9] * 30,
    }
    write_csv(tmp_path / "labels.csv", {"image": names, "number": list(range(30))})
    write_csv(tmp_path.parent / f"{tmp_path.name}-boxes.csv", boxes)
    for i, name in enumerate(names):
        Image.fromarray(np.full((16, 16, 3), 8 * i, np.uint8)).save(tmp_path / "pictures" / name)
        Image.fromarray(rng.integers(0, 2, (16, 16), np.uint8)).save(tmp_path / "masks" / name)
    source = Files(
        path=str(tmp_path / "labels.csv"),
        size=16,
        tasks={
            "number": {"kind": "regression"},
            "mask": {"path": str(tmp_path / "masks"), "kind": "segmentation"},
            "things": {
                "path": str(tmp_path.parent / f"{tmp_path.name}-boxes.csv"),
                "kind": "detection",
                "columns": ["image", "what", "left", "top", "x2", "y2"],
            },
        },
    ).resolve()
    arrays = source.load()
    (stack,), _ = build_episodes(source, arrays, seed=0, split="train", step=0, indices=[0])
    assert torch.equal(
        shared_inputs(stack.query)[0, :, 0, 0, 0].long(),
        8 * stack.query.targets["number"][0].long(),
    )
    assert all(mask.all() for mask in stack.query.masks.values())


def saved(root: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Pictures by their names below the root, half of them in the folder `a`."""
    for i, (name, pixels) in enumerate(arrays.items()):
        folder = root / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return root


def ramps(number: int, most: float, kind: type = np.uint16) -> list[np.ndarray]:
    """Pictures [6, 6] whose lightest pixel is `most` in the last and a part of it in the others."""
    ramp = np.linspace(0, 1, 36).reshape(6, 6)
    return [(ramp * most * (i + 1) / number).astype(kind) for i in range(number)]


def source_of(root: Path, **values: Any) -> Files:
    return Files(path=str(root), size=6, tasks={"folder": {}}, **values).resolve()


def by_name(source: Files) -> dict[str, np.ndarray]:
    """Each picture [H, W] as the model sees it, of grey ones."""
    arrays = source.load()
    files = (
        TableDataset(source)
        .together(range(len(TableDataset(source).blocks)))[0]
        .table["file"]
        .to_pylist()
    )
    return {
        name.rpartition("/")[2]: pixels[0]
        for name, pixels in zip(files, arrays["inputs"], strict=True)
    }


@pytest.mark.parametrize(
    ("most", "white"), [(200, 255), (299, 1023), (4095, 4095), (16000, 16383), (40000, 65535)]
)
def test_deep_pictures_are_scaled_alike(tmp_path: Path, most: int, white: int) -> None:
    """By the bits that the set has."""
    pictures = {f"{i:02d}.png": pixels for i, pixels in enumerate(ramps(40, most))}
    source = source_of(saved(tmp_path, pictures))
    assert source.found.shades == Shades(black=0, white=white, fractions=False)
    seen = by_name(source)
    for name, pixels in pictures.items():
        np.testing.assert_array_equal(seen[name], np.rint(pixels / white * 255))
    (note,) = source.notes(source.load())
    assert note.key == "data.value_range" and f"0 is black and {white} white" in note.text


def test_pictures_of_8_bits_keep_their_white(tmp_path: Path) -> None:
    """Beside deeper ones."""
    deep = {f"{i:02d}.png": pixels for i, pixels in enumerate(ramps(20, 4000))}
    flat = {f"{i:02d}f.png": pixels for i, pixels in enumerate(ramps(20, 255, np.uint8))}
    source = source_of(saved(tmp_path, {**deep, **flat}))
    seen = by_name(source)
    np.testing.assert_array_equal(seen["05f.png"], flat["05f.png"])
    np.testing.assert_array_equal(seen["05.png"], np.rint(deep["05.png"] / 4095 * 255))
    (note,) = source.notes(source.load())
    assert "255 in the" in note.text


def test_floats_have_a_range(tmp_path: Path) -> None:
    """From 0 to 1, or the one that is given."""
    unit = {f"{i:02d}.tif": pixels for i, pixels in enumerate(ramps(20, 1.0, np.float32))}
    seen = by_name(source_of(saved(tmp_path / "unit", unit)))
    np.testing.assert_array_equal(seen["07.tif"], np.rint(unit["07.tif"].astype(float) * 255))
    wide = {name: 500 * pixels - 100 for name, pixels in unit.items()}
    root = saved(tmp_path / "wide", wide)
    with pytest.raises(
        UserError,
        match=r"data\.value_range: .*\.tif: expected fractions from 0 to 1, got values from",
    ):
        source_of(root)
    seen = by_name(source_of(root, value_range=(-100, 400)))
    np.testing.assert_array_equal(
        seen["07.tif"], np.rint((wide["07.tif"].astype(float) + 100) / 500 * 255)
    )
    mixed = saved(root, {f"{i:02d}.png": pixels for i, pixels in enumerate(ramps(6, 4000))})
    with pytest.raises(
        UserError, match=r"expected pictures of one kind of numbers, got .* in .* and .* in "
    ):
        source_of(mixed)


def test_values_beyond_the_range_are_clipped(tmp_path: Path) -> None:
    """It is told."""
    pictures = {f"{i:02d}.png": pixels for i, pixels in enumerate(ramps(20, 4000))}
    source = source_of(saved(tmp_path, pictures), value_range=(0, 3000))
    arrays = source.load()
    (note,) = source.notes(arrays)
    assert (
        note.key == "data.value_range"
        and "5 have values outside 0 to 3000, which are cut off" in note.text
    )
    assert arrays["inputs"].max() == 255
    with pytest.raises(
        UserError, match=r"data\.value_range: expected \[black, white\], the smaller first"
    ):
        source_of(tmp_path, value_range=(3000, 0))


def test_colours_keep_their_lower_8_bits(tmp_path: Path) -> None:
    """Those of 16 bits."""
    rng = np.random.default_rng(0)
    colours = {
        f"{i:02d}.png": rng.integers(0, 4096, (6, 6, 3)).astype(np.uint16) for i in range(20)
    }
    for i, (name, pixels) in enumerate(colours.items()):
        folder = tmp_path / "ab"[i % 2]
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(png16(pixels))
    source = source_of(tmp_path)
    arrays = source.load()
    assert source.input_shape == (3, 6, 6) and source.found.shades == Shades(
        black=0, white=4095, fractions=False
    )
    np.testing.assert_array_equal(
        arrays["inputs"][0], np.rint(colours["00.png"] / 4095 * 255).transpose(2, 0, 1)
    )


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of three times 16 bits, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width, _ = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_new_pictures_have_the_runs_scale(tmp_path: Path) -> None:
    source = source_of(
        saved(tmp_path / "run", {f"{i:02d}.png": p for i, p in enumerate(ramps(20, 4000))})
    )
    dark = {f"{i:02d}.png": pixels for i, pixels in enumerate(ramps(4, 200))}
    found = read_unseen(source.select_tasks(()), str(saved(tmp_path / "new", dark)))
    np.testing.assert_array_equal(found.inputs[0, 0], np.rint(dark["00.png"] / 4095 * 255))
    flat = source_of(plain_pictures(tmp_path / "flat"))
    with pytest.raises(
        UserError, match="it has more than 8 bits, the pictures for training have not"
    ):
        read_unseen(flat.select_tasks(()), str(tmp_path / "new"))


def test_oversized_pictures_count_as_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In grey and in colour."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    root = plain_pictures(tmp_path, 40)  # of 108 pixels
    for path in root.rglob("*.png"):
        path.write_bytes(png(np.full((5, 6), 3, np.uint8)))
    (root / "dark" / "huge.png").write_bytes(png(np.zeros((40, 40), np.uint8)))
    source = Files(path=str(root), size=4, tasks={"folder": {}}, max_corrupt=0.05).resolve()
    (note,) = source.notes(source.load())
    assert "1 of 41 pictures cannot be read: dark/huge.png (Image size" in note.text


def test_names_with_an_underscore_are_read(tmp_path: Path) -> None:
    """Hidden ones are told."""
    root = plain_pictures(tmp_path, 20)
    for i, path in enumerate(sorted(root.rglob("*.png"))):
        path.rename(path.with_name(f"_DSC{i:04d}.JPG"))
    shutil.copytree(root / "dark", root / "_unsure")
    (root / "dark" / "._DSC0001.JPG").write_bytes(b"macOS")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "_x.jpg").write_bytes(b"macOS")
    (root / "_SUCCESS").touch()
    source = source_of(root)
    assert source.found.rows == 30 and source.found.tasks["folder"].classes == (
        "_unsure",
        "dark",
        "light",
    )
    (note,) = source.notes(source.load())
    assert note.text.startswith(
        "2 are passed over, since their names or folders begin with . or _: "
    )
    assert "._DSC0001.JPG" in note.text
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for i in range(3):
        (hidden / f".{i}.jpg").touch()
    with pytest.raises(
        UserError,
        match=r"beside 3 whose names or folders begin with \. or _ and are passed over \(\.0",
    ):
        source_of(hidden)


def test_other_files_are_noted(tmp_path: Path) -> None:
    """So are rows without a picture."""
    root = plain_pictures(tmp_path, 20)
    for name in ("a.heic", "b.heic", "Thumbs.db", "c.psd"):
        (root / "dark" / name).touch()
    names = [f"{('dark', 'light')[i % 2]}/{i}.png" for i in range(20)] + [
        "dark/lost.png",
        "dark/gone.png",
    ]
    write_csv(root / "labels.csv", {"name": names, "y": [i / 2 for i in range(22)]})
    source = Files(path=str(root), size=4, tasks={"y": {}}).resolve()
    others, lost = source.notes(source.load())
    assert others.text.startswith("4 are of no known kind of pictures, and are passed over: ")
    assert others.text.endswith("and 1 more") and "Thumbs.db" in others.text
    assert (
        lost.text
        == "2 rows name no picture that is there, and are left out: dark/gone.png, dark/lost.png"
    )
    assert lost.place.endswith("labels.csv")


@pytest.mark.parametrize("ending", ["jfif", "jp2", "avif", "tga", "pbm"])
def test_less_common_kinds_of_pictures_are_read(tmp_path: Path, ending: str) -> None:
    for i in range(20):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 255 * (i % 2), np.uint8)).save(
            tmp_path / "ab"[i % 2] / f"{i}.{ending}", {"jfif": "JPEG", "pbm": "PPM"}.get(ending)
        )
    arrays = Files(path=str(tmp_path), size=4, tasks={"folder": {}}).resolve().load()
    np.testing.assert_array_equal(arrays["inputs"][:, 0, 0, 0] > 100, arrays["target/folder"])


def test_colours_among_greys_are_noted(tmp_path: Path) -> None:
    root = saved(
        tmp_path, {f"{i:03d}.png": np.full((9, 12), i % 250, np.uint8) for i in range(200)}
    )
    path = sorted(root.rglob("*.png"))[1]  # which is not among those that are looked at
    path.write_bytes(png(np.dstack([np.full((9, 12), level, np.uint8) for level in (200, 10, 10)])))
    source = Files(path=str(root), size=4, tasks={"folder": {}}).resolve()
    assert source.input_shape[0] == 1
    (note,) = (note for note in source.notes(source.load()) if note.key == "data.channels")
    assert note.text.startswith("1 are in colour and are seen as greys") and path.name in note.text
    said = Files(path=str(root), size=4, tasks={"folder": {}}, channels=1).resolve()
    assert not [note for note in said.notes(said.load()) if note.key == "data.channels"]
