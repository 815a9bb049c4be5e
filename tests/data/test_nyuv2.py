"""NYUv2 on a folder of its layout: splits, masks, crops and mirrors that keep what is true, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymtl.config import load
from raymtl.data import SPLITS, NYUv2
from raymtl.data.base import Split
from raymtl.data.episodes import build_episodes, on_device
from raymtl.data.sources.nyuv2 import Frame, mirror
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import Episode, UserError
from tests.data.rooms import frame, write_rooms
from tests.narrowing import shared_inputs

CONFIG = Path(__file__).parent.parent.parent / "tune_configs" / "nyuv2.yaml"


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rooms(tmp_path_factory.mktemp("data") / "nyuv2")


def build(
    source: NYUv2, count: int = 1, split: Split = "train", seed: int = 0, step: int = 0
) -> tuple[Episode, list[str]]:
    (stack,), domains = build_episodes(
        source, source.load(), seed=seed, split=split, step=step, indices=range(count)
    )
    return stack, domains


def numbers(pictures: torch.Tensor) -> list[int]:
    """Which frames pictures [N, 3, H, W] are, by their blue."""
    return (pictures[:, 2, 0, 0].double() / 2.55).round().int().tolist()


def test_frames_are_what_the_files_hold(rooms: Path) -> None:
    episodes, domains = build(NYUv2(folder=str(rooms), queries=3), split="test")
    assert domains == ["frames of val"]
    assert (
        shared_inputs(episodes.query).shape == (1, 3, 3, 288, 384)
        and shared_inputs(episodes.query).dtype == torch.uint8
    )
    for index, number in enumerate(numbers(shared_inputs(episodes.query)[0])):
        assert number in (50, 51)
        found = frame(number)
        np.testing.assert_allclose(
            shared_inputs(episodes.query)[0, index] / 255,
            np.moveaxis(found["image"], -1, 0),
            atol=0.002,
        )
        targets = {
            name: target[0, index].numpy() for name, target in episodes.query.targets.items()
        }
        np.testing.assert_array_equal(targets["segmentation"], found["label"])
        np.testing.assert_array_equal(targets["depth"], found["depth"][..., 0])
        np.testing.assert_array_equal(targets["normals"], np.moveaxis(found["normal"], -1, 0))


def test_splits_share_no_frame(rooms: Path) -> None:
    """The seed decides which are held out."""
    source = NYUv2(folder=str(rooms), held_out=100)
    arrays = source.load()
    assert [len(arrays[split]) for split in SPLITS] == [695, 100, 654]
    assert sorted([*arrays["train"], *arrays["val"]]) == list(range(795))
    assert sum(array.nbytes for array in arrays.values()) < 10**5
    other = source.model_copy(update={"split_seed": 1}).load()
    assert set(other["val"]) != set(arrays["val"]) and list(other["test"]) == list(arrays["test"])
    folders = {split: build(source, 2, split)[1][0] for split in SPLITS}
    assert folders == {
        "train": "frames of train",
        "val": "frames of train",
        "test": "frames of val",
    }


def test_episodes_depend_on_their_index_alone(rooms: Path) -> None:
    """An episode is a function of seed, split, step and index."""
    source = NYUv2(folder=str(rooms), size=(24, 32), augment=True)
    whole, _ = build(source, 3, step=4)
    (alone,), _ = build_episodes(source, source.load(), seed=0, split="train", step=4, indices=[2])
    for batch, own in zip(whole, alone, strict=True):
        assert torch.equal(shared_inputs(batch)[2], shared_inputs(own)[0])
        assert all(
            torch.equal(batch.targets[name][2], own.targets[name][0]) for name in source.task_names
        )
    assert not torch.equal(
        shared_inputs(whole.query), shared_inputs(build(source, 3, step=5)[0].query)
    )


def test_resizing_keeps_missing_pixels_missing(rooms: Path) -> None:
    """No value is made of two."""
    episodes, _ = build(NYUv2(folder=str(rooms), size=(36, 48), queries=8))
    targets = episodes.query.targets
    assert set(targets["segmentation"].unique().tolist()) <= set(range(-1, 13))
    lengths = targets["normals"][0].norm(dim=1)
    assert set(lengths.round(decimals=4).unique().tolist()) == {0, 1}
    for missing in (targets["segmentation"] < 0, targets["depth"] == 0, lengths == 0):
        assert float(missing.float().mean()) == pytest.approx(0.1, abs=0.02)
    known = targets["segmentation"][0, 0]
    rows, columns = (
        shared_inputs(episodes.query)[0, 0, channel].double() / 255 for channel in (0, 1)
    )
    expected = (rows * 288 // 24 + columns * 384 // 32) % 13
    assert (
        float((known == expected)[known >= 0].float().mean()) > 0.8
    )  # but at the borders of the classes


def test_crops_and_mirrors_keep_the_geometry(rooms: Path) -> None:
    """In a frame depth is 1 + column / width, and so is the angle of the normal, less 0.3: whatever the crop is."""
    episodes, _ = build(
        NYUv2(
            folder=str(rooms), size=(72, 96), augment=True, queries=5, tasks=("depth", "normals")
        ),
        12,
    )
    inputs, targets = shared_inputs(episodes.query).flatten(0, 1), episodes.query.targets
    found = set()
    for picture, depth, normals in zip(
        inputs, targets["depth"].flatten(0, 1), targets["normals"].flatten(0, 1), strict=True
    ):
        columns = picture[1].double() / 255
        there = depth > 0
        scale = float(((1 + columns)[there] / depth[there]).median())
        np.testing.assert_allclose(depth[there] * scale, (1 + columns)[there], atol=0.02)
        facing = normals.norm(dim=0) > 0
        mirrored = bool((columns[:, 0] > columns[:, -1]).all())
        angle = torch.atan2(normals[0], normals[2])[facing] * (-1 if mirrored else 1)
        np.testing.assert_allclose(angle, (columns - 0.3)[facing], atol=0.02)
        rows = picture[0].double() / 255
        assert float(rows.max() - rows.min()) == pytest.approx(1 / scale, abs=0.03)
        found.add((round(scale, 1), mirrored))
    assert found == {(scale, mirrored) for scale in (1.0, 1.2, 1.5) for mirrored in (False, True)}


def test_held_out_frames_are_not_augmented(rooms: Path) -> None:
    plain, augmented = (
        NYUv2(folder=str(rooms), size=(24, 32), augment=augment) for augment in (False, True)
    )
    for split in ("val", "test"):
        one, other = (build(source, 2, split)[0].query for source in (plain, augmented))
        assert torch.equal(shared_inputs(one), shared_inputs(other)) and torch.equal(
            one.targets["depth"], other.targets["depth"]
        )


def test_mirroring_twice_changes_nothing() -> None:
    torch.manual_seed(0)
    own = Frame(
        torch.zeros(3, 4, 6).byte(),
        torch.arange(24).view(4, 6).short(),
        torch.rand(4, 6),
        torch.randn(3, 4, 6),
    )
    once = mirror(own)
    assert torch.equal(once.segmentation[:, 0], own.segmentation[:, -1])
    torch.testing.assert_close(
        once.normals[:, :, 0], own.normals[:, :, -1] * torch.tensor([[-1.0], [1], [1]])
    )
    assert all(torch.equal(a, b) for a, b in zip(mirror(once), own, strict=True))


def test_supervised_episodes_keep_every_label(rooms: Path) -> None:
    source = NYUv2(folder=str(rooms), size=(24, 32), shots=3, queries=4, held_out=8)
    assert shared_inputs(build(source.as_supervised(), split="val")[0].query).shape[1] == 7
    assert NYUv2.model_validate(source.as_supervised().model_dump()) == source.as_supervised()
    assert [task.name for task in source.select_tasks(("depth",)).make_tasks()] == ["depth"]


def test_the_shipped_configuration_takes_a_step(rooms: Path) -> None:
    """On a folder of the layout."""
    experiment = load(CONFIG, {"data.folder": str(rooms), "data.size": [48, 64]})
    algorithm = experiment.build()
    built, _ = build_episodes(
        experiment.data, experiment.data.load(), seed=0, split="train", step=0, indices=[0]
    )
    meta = meta_gradient(algorithm, algorithm.init_params(), on_device(built, "cpu"))
    assert meta.losses.isfinite().all() and len(meta.losses) == 3


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"size": (288, 400)}, "data.size: expected at most 288 x 384"),
        ({"tasks": ("depth", "depth")}, "data.tasks: expected every task once"),
        ({"held_out": 4, "queries": 4}, "data.held_out: expected 5 frames at least"),
        ({"held_out": 793, "queries": 4}, "data.held_out: expected 5 frames at least"),
    ],
)
def test_impossible_sources_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        NYUv2(**values)


def test_damaged_data_is_answered_with_the_file(tmp_path: Path) -> None:
    root = write_rooms(tmp_path / "nyuv2", different=1)
    source = NYUv2(size=(24, 32), folder=str(root))
    for part, values, says in (
        (
            "depth",
            np.zeros((288, 300, 1)),
            r"depth/\d+.npy: expected an array of shape \(288, 384, 1\), got \(288, 300, 1\)",
        ),
        (
            "label",
            np.full((288, 384), 13.0),
            r"train: frame \d+: expected a picture .* classes from -1 to 12, got up to",
        ),
        (
            "image",
            np.full((288, 384, 3), 200.0),
            "expected a picture of numbers from 0 to 1 and classes",
        ),
    ):
        whole = (root / "train" / part / "0.npy").read_bytes()
        np.save(root / "train" / part / "0.npy", values)
        with pytest.raises(UserError, match=says):
            build(source)
        (root / "train" / part / "0.npy").write_bytes(whole)
    np.save(
        root / "train" / "depth" / "0.npy", frame(0)["depth"][..., 0]
    )  # without the axis of one it says the same
    assert build(source)[0].query.targets["depth"].max() > 1
    (root / "val" / "normal" / "653.npy").unlink()
    with pytest.raises(
        UserError, match=r"654 files 0.npy to 653.npy in .*val/normal, got 653 without 653.npy"
    ):
        source.load()
