"""Folders of the user's own pictures: decoding, labels beside them, and what cannot be read."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raymtl.config import Experiment
from raymtl.data import SPLITS, Files
from raymtl.data.episodes import build_episodes, on_device
from raymtl.data.files.pictures import channels_of, decoded
from raymtl.step import meta_gradient
from raymtl.types import UserError
from tests.data.own import PICTURE_TASKS, write_csv, write_pictures


def png(pixels: np.ndarray, mode: str | None = None, **options) -> bytes:
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
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("own") / "Bilder 1.0")


def test_pictures_of_all_kinds_with_four_kinds_of_labels_train_a_step(pictures) -> None:
    data = {"name": "files", "path": str(pictures), "size": 12, "tasks": PICTURE_TASKS}
    chosen = Experiment.model_validate(
        {"data": data, "encoder": {"name": "conv", "channels": [4, 4]}, "learner": {"name": "maml", "inner_steps": 1}}
    )
    source = chosen.data
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
    red = arrays["mask/colour"] & (arrays["target/colour"] == colours.index("red")) & (np.ptp(inputs, 1) > 40)
    assert red.sum() > 3 and (inputs[red].argmax(1) == 0).all()
    episodes, _ = build_episodes(source, arrays, seed=0, split="train", step=0, indices=range(2))
    problem = chosen.build()
    assert meta_gradient(problem, problem.init_params(), on_device(episodes, "cpu")).losses.isfinite().all()


def test_labels_are_those_of_the_row_that_names_the_picture(pictures) -> None:
    source = Files(path=str(pictures), size=4, tasks={"colour": {}, "folder": {"column": "folder1"}})
    arrays = source.load()
    known = arrays["mask/colour"]
    assert source.found.tasks["colour"].classes == source.found.tasks["folder"].classes
    np.testing.assert_array_equal(arrays["target/colour"][known], arrays["target/folder"][known])


def test_grey_pictures_have_one_channel_and_the_folder_is_a_class(tmp_path) -> None:
    source = Files(path=str(plain_pictures(tmp_path)), size=(4, 6), tasks={"light": {"column": "folder"}})
    assert source.input_shape == (1, 4, 6)
    arrays = source.load()
    assert source.found.tasks["light"].classes == ("dark", "light")
    np.testing.assert_array_equal(arrays["target/light"], arrays["inputs"][:, 0, 0, 0] >= 100)


def test_folders_named_as_splits_are_the_splits(tmp_path) -> None:
    for split, number in (("train", 20), ("valid", 8), ("test", 6)):
        plain_pictures(tmp_path / split, number)
    source = Files(path=str(tmp_path), size=4, tasks={"light": {"column": "folder"}})
    arrays = source.load()
    assert [len(arrays[f"rows/{split}"]) for split in SPLITS] == [20, 8, 6]
    assert "folder1" not in source.found.left_out


def test_a_table_can_name_the_pictures(tmp_path) -> None:
    plain_pictures(tmp_path / "p")
    names = [f"p/{('dark', 'light')[i % 2]}/{i}.png" for i in range(40)]
    write_csv(tmp_path / "table.csv", {"which": names, "value": [i / 2 for i in range(40)]})
    source = Files(path=str(tmp_path / "table.csv"), size=4, tasks={"value": {}})
    arrays = source.load()
    assert source.pictures
    np.testing.assert_array_equal(arrays["target/value"] * 4 % 200, 2.0 * np.arange(40) % 200)
    np.testing.assert_array_equal(arrays["inputs"][:, 0, 0, 0], [2 * i + 100 * (i % 2) for i in range(40)])


def test_pictures_can_stand_in_the_table(tmp_path) -> None:
    contents = [png(np.full((5, 5), i, np.uint8)) for i in range(40)]
    for values in (contents, [{"bytes": content, "path": None} for content in contents]):
        pq.write_table(pa.table({"image": values, "y": np.arange(40) / 3}), tmp_path / "t.parquet")
        source = Files(path=str(tmp_path / "t.parquet"), size=3, tasks={"y": {}})
        assert source.load()["inputs"][:, 0, 1, 1].tolist() == list(range(40))


def test_what_is_transparent_is_white_and_16_bits_become_8() -> None:
    half = np.zeros((6, 6, 4), np.uint8)
    half[:, 3:, 3] = 255
    shown = decoded(png(half), (6, 6), 3, "stretch")
    assert (shown[:, :, 0] == 255).all() and (shown[:, :, 5] == 0).all()
    deep = (np.arange(36).reshape(6, 6) * 1800).astype(np.uint16)
    np.testing.assert_allclose(decoded(png(deep), (6, 6), 1, "stretch")[0], deep / 257, atol=1)
    palette = Image.fromarray(half[..., :3]).convert("P")
    stream = io.BytesIO()
    palette.save(stream, "png", transparency=palette.getpixel((0, 0)))
    assert (decoded(stream.getvalue(), (6, 6), 3, "stretch") == 255).all()
    assert (
        channels_of([png(deep)]) == 1 and channels_of([png(deep), stream.getvalue()]) == 3 and channels_of([b""]) == 1
    )


def test_stretching_keeps_all_and_cropping_the_proportion() -> None:
    wide = np.repeat(np.linspace(0, 240, 40, dtype=np.uint8)[None], 10, 0)
    stretched, cropped = (decoded(png(wide), (10, 10), 1, how)[0, 5] for how in ("stretch", "crop"))
    assert stretched[0] < 15 and stretched[-1] > 225
    np.testing.assert_array_equal(cropped, wide[0, 15:25])


def test_unreadable_pictures_are_counted_named_and_left_out_up_to_a_share(tmp_path) -> None:
    root = plain_pictures(tmp_path, 40)
    (root / "dark" / "0.png").write_bytes(b"\x89PNG no picture")
    whole = (root / "light" / "1.png").read_bytes()
    (root / "light" / "1.png").write_bytes(whole[: len(whole) // 2])
    source = Files(path=str(root), size=4, tasks={"light": {"column": "folder"}}, max_corrupt=0.05)
    arrays = source.load()
    assert "2 of 40 pictures cannot be read: dark/0.png (no picture); light/1.png" in str(source.notes(arrays))
    drawn = np.concatenate([arrays[f"rows/{split}"] for split in SPLITS])
    assert len(drawn) == 38
    assert arrays["inputs"].reshape(40, -1).max(1)[~arrays["mask/light"]].tolist() == [0, 0]
    with pytest.raises(UserError, match=r"data.max_corrupt: 2 of 40 pictures cannot be read: .*, which is over 1.0%"):
        Files(path=str(root), size=4, tasks={"light": {"column": "folder"}}).load()


def test_a_picture_that_a_table_names_and_that_is_not_there_counts_as_unreadable(tmp_path) -> None:
    plain_pictures(tmp_path / "p", 20)
    names = [f"p/{('dark', 'light')[i % 2]}/{i}.png" for i in range(20)] + ["p/gone.png"]
    write_csv(tmp_path / "t.csv", {"which": names, "y": [i / 2 for i in range(21)]})
    with pytest.raises(UserError, match=r"1 of 21 pictures cannot be read: p/gone.png"):
        Files(path=str(tmp_path / "t.csv"), size=4, tasks={"y": {}}).load()


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
def test_labels_that_do_not_fit_the_pictures_are_told(tmp_path, labels, says) -> None:
    write_csv(plain_pictures(tmp_path) / "labels.csv", labels)
    with pytest.raises(UserError, match=says):
        Files(path=str(tmp_path), size=4, tasks={"y": {}})


def test_names_may_stand_without_folder_or_ending(tmp_path) -> None:
    root = plain_pictures(tmp_path)
    write_csv(root / "labels.csv", {"id": [str(i) for i in range(40)], "y": [i * 1.5 for i in range(40)]})
    arrays = Files(path=str(root), size=4, tasks={"y": {}}).load()
    brightness = arrays["inputs"][:, 0, 0, 0].astype(float)
    number = np.where(brightness % 4 == 2, (brightness - 100) / 2, brightness / 2)
    np.testing.assert_allclose(arrays["target/y"], number * 1.5)
    assert torch.is_tensor(torch.from_numpy(brightness))


def test_pictures_that_a_table_names_are_found_in_folders_below_it_beside_masks_and_boxes_of_the_same_names(
    tmp_path,
) -> None:
    rng = np.random.default_rng(0)
    names = [f"p{i:02d}.png" for i in range(30)]
    for folder in ("pictures", "masks"):
        (tmp_path / folder).mkdir()
    boxes = {"image": names, "what": ["a", "b"] * 15, "left": [1] * 30, "top": [2] * 30, "x2": [9] * 30, "y2": [9] * 30}
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
    )
    arrays = source.load()
    (stack,), _ = build_episodes(source, arrays, seed=0, split="train", step=0, indices=[0])
    assert torch.equal(stack.query.inputs[0, :, 0, 0, 0].long(), 8 * stack.query.targets["number"][0].long())
    assert all(mask.all() for mask in stack.query.masks.values())
