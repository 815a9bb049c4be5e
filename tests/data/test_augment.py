"""Pictures for training that change at random: seeded by their episodes, with labels that follow."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torch.nn import functional as F

from raymtl.config import Experiment
from raymtl.data import Files
from raymtl.data.batch_picture import label_text
from raymtl.data.draws import Draws
from raymtl.data.episodes import build_episodes, on_device
from raymtl.data.tables.augment import Augment, augmented
from raymtl.data.tables.changes import Change, Cropped, Example, Flipped, changed
from raymtl.data.tables.mixup import mixed
from raymtl.data.tables.trivial_augment import OPERATIONS, Warp, draw_operations
from raymtl.step.meta_gradient import meta_gradient
from raymtl.tasks import classification, detection, segmentation
from raymtl.tasks.depth import DEPTH
from raymtl.tasks.normals import NORMALS
from raymtl.types import Batch, Episode, TaskKind, UserError
from tests.data.own import write_csv, write_scenes
from tests.narrowing import shared_inputs

ALL = {"crop": 0.5, "flip": True, "trivial": True, "colour": 0.4}
SIDE = 48


def generators(number: int, seed: int = 0) -> Draws:
    return Draws.of_episodes([seed], range(number))


def in_classes(root: Path, number: int = 24) -> Path:
    """`a/N.png` and `b/N.png`, pictures of noise, three classes."""
    rng = np.random.default_rng(0)
    for name in "abc":
        (root / name).mkdir(parents=True)
        for i in range(number):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(
                root / name / f"{i}.png"
            )
    return root


def source(root: Path, **values: Any) -> Files:
    return Files(
        path=str(root),
        size=12,
        tasks={"kind": {"column": "folder"}},
        **{"shots": 2, "queries": 3, **values},
    ).resolve()


def drawn(own: Files, split: Any, indices: list[int]) -> Episode:
    (episode,), _ = build_episodes(own, own.load(), seed=0, split=split, step=3, indices=indices)
    return episode


def same(one: Episode, other: Episode) -> bool:
    pairs = zip(one, other, strict=True)
    return all(
        torch.equal(shared_inputs(a), shared_inputs(b)) and torch.equal(a.targets["kind"], b.targets["kind"])
        for a, b in pairs
    )  # fmt: skip


def row(episode: Episode, index: int) -> Episode:
    def of(batch: Batch) -> Batch:
        targets = {name: values[index : index + 1] for name, values in batch.targets.items()}
        return Batch(shared_inputs(batch)[index : index + 1], targets, {})

    return Episode(of(episode.support), of(episode.query))


@pytest.mark.parametrize("episodes", ["rows", "classes"])
def test_an_episode_changes_by_its_index_alone(tmp_path: Path, episodes: str) -> None:
    few = {"ways": 2, "split": {"fractions": [1, 1, 1]}} if episodes == "classes" else {}
    root = in_classes(tmp_path / "all")
    if episodes == "classes":
        for name in "def":
            (root / name).mkdir()
            for path in (root / "abc"[ord(name) - ord("d")]).iterdir():
                (root / name / path.name).write_bytes(path.read_bytes()[:-1] + b"\x00")
    own = source(root, episodes=episodes, augment={**ALL, "mixup": 0.5}, **few)
    together = drawn(own, "train", [0, 1, 2, 3])
    assert same(row(together, 2), drawn(own, "train", [2]))
    assert not same(row(together, 2), row(together, 3))


def test_training_alone_is_changed(tmp_path: Path) -> None:
    root = in_classes(tmp_path / "all")
    plain, own = source(root), source(root, augment=ALL)
    for split in ("val", "test"):
        assert same(drawn(plain, split, [0, 1]), drawn(own, split, [0, 1]))
    one, other = drawn(plain, "train", [0, 1]), drawn(own, "train", [0, 1])
    assert torch.equal(one.query.targets["kind"], other.query.targets["kind"])
    unchanged = (shared_inputs(one.query) == shared_inputs(other.query)).flatten(2).all(2)
    assert not unchanged.all()


def rectangles(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures with one white rectangle, its class map, and its box."""
    rng = np.random.default_rng(1)
    pictures = torch.zeros(1, number, 3, SIDE, SIDE, dtype=torch.uint8)
    boxes = torch.zeros(1, number, 2, 5)
    boxes[..., 1, 0] = -1
    for i in range(number):
        left, top = rng.integers(8, 20, 2).tolist()
        right, bottom = left + int(rng.integers(12, 20)), top + int(rng.integers(12, 20))
        pictures[0, i, :, top:bottom, left:right] = 255
        boxes[0, i, 0, 1:] = torch.tensor([left, top, right, bottom])
    return pictures, (pictures[:, :, 0] > 0).to(torch.int16), boxes


@pytest.mark.parametrize("way", ["flip", "crop", "trivial", "all"])
def test_boxes_and_masks_follow_the_picture(way: str) -> None:
    number = 200
    pictures, masks, boxes = rectangles(number)
    tasks = [segmentation("mask", 2, (SIDE, SIDE)), detection("box", 1, (SIDE, SIDE))]
    batch = Batch(pictures, {"mask": masks, "box": boxes}, {})
    settings = {"flip": {"flip": True}, "crop": {"crop": 0.4}, "trivial": {"trivial": True}}
    augment = Augment.model_validate(settings.get(way, {"flip": True, "crop": 0.4}))
    one = batch._replace(
        inputs=pictures[:, :1], targets={"mask": masks[:, :1], "box": boxes[:, :1]}
    )
    found = augmented(augment, Episode(one, batch), tasks, generators(1)).query
    seen, mask = shared_inputs(found)[0].float().mean(1), found.targets["mask"][0]
    moved = 0
    for i in range(number):
        white = seen[i] > 127
        if not seen[i].max() / 255 > 0.2 or not white.any() or white.float().mean() > 0.6:
            continue  # solarised, or darkened: only places are asked for
        moved += not torch.equal(mask[i], masks[0, i])
        assert (white == (mask[i] == 1)).float().mean() > 0.96
        class_, *corners = found.targets["box"][0, i, 0].tolist()
        ys, xs = torch.nonzero(white, as_tuple=True)
        truth = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        if class_ == 0:
            np.testing.assert_allclose(corners, [float(v) for v in truth], atol=3)
    assert moved > number / 8


def only(
    change: Change, picture: Tensor, labels: dict[str, Tensor], kinds: dict[str, TaskKind]
) -> Example:
    return changed(Example(picture, labels), [change], kinds)  # fmt: skip


def test_boxes_that_are_hardly_left_are_removed() -> None:
    picture = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0, 0, 10, 10], [1.0, 20, 20, 40, 40], [-1.0, 0, 0, 0, 0]])
    kind = detection("box", 2, (SIDE, SIDE)).kind
    found = only(Cropped(9, 9, 36, 36), picture, {"box": boxes}, {"box": kind}).labels["box"]
    scale = SIDE / 36
    wanted = [
        [-1.0, 0, 0, 0, 0],
        [1.0, *(scale * (v - 9) for v in (20, 20, 40, 40))],
        [-1.0, 0, 0, 0, 0],
    ]
    torch.testing.assert_close(found, torch.tensor(wanted))  # fmt: skip


def test_normals_turn_in_a_mirror_and_depth_shrinks_in_a_zoom() -> None:
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    normals = torch.randn(3, 8, 8).half()
    mirrored = only(Flipped(True), picture, {"n": normals}, {"n": NORMALS}).labels["n"]
    torch.testing.assert_close(
        mirrored, torch.stack([-normals[0], normals[1], normals[2]]).flip(-1)
    )
    depth = torch.full((8, 8), 3.0)
    nearer = only(Cropped(1, 2, 4, 4), picture, {"d": depth}, {"d": DEPTH}).labels["d"]
    torch.testing.assert_close(nearer, torch.full((8, 8), 1.5))


def test_crops_have_all_areas_and_places_alike() -> None:
    """Areas are uniform from the least share to 1, and places between the sides."""
    place = torch.arange(100.0).expand(1, 100, 100).to(torch.uint8)
    pictures = place.expand(1, 3000, 1, 100, 100)
    batch = Batch(pictures, {}, {})
    found = augmented(Augment(crop=0.25), Episode(batch, batch), [], generators(1)).query
    columns = shared_inputs(found)[0, :, 0, 50].float()
    widths = (columns[:, 90] - columns[:, 10]) / 80
    areas = widths.square()
    assert abs(areas.mean() - 0.625) < 0.02
    assert abs(areas.std() - 0.75 / math.sqrt(12)) < 0.02
    middles = columns[:, 50]
    assert abs(middles.mean() - 49.5) < 1


def test_each_operation_has_equal_odds() -> None:
    changes = draw_operations(7000, generators(1))
    assert abs(sum(isinstance(change, Warp) for change in changes) / 7000 - 5 / 14) < 0.02
    assert len(OPERATIONS) == 14


def with_pillow(name: str, strength: float) -> Callable[[Image.Image], Image.Image]:
    factor = 1 + 0.99 * strength
    enhancers = {
        "Brightness": ImageEnhance.Brightness,
        "Color": ImageEnhance.Color,
        "Contrast": ImageEnhance.Contrast,
    }
    if name in enhancers:
        return lambda picture: enhancers[name](picture).enhance(factor)
    others: dict[str, Callable[[Image.Image], Image.Image]] = {
        "Identity": lambda picture: picture,
        "Posterize": lambda picture: ImageOps.posterize(picture, round(8 - 6 * strength)),
        "Solarize": lambda picture: ImageOps.solarize(picture, round(255 * (1 - strength))),
        "AutoContrast": ImageOps.autocontrast,
        "Equalize": ImageOps.equalize,
    }
    return others[name]


@pytest.mark.parametrize(
    "name",
    ["Identity", "Brightness", "Color", "Contrast", "Posterize", "Solarize", "AutoContrast", "Equalize"],
)  # fmt: skip
def test_colours_change_as_pillow_changes_them(name: str) -> None:
    noise = np.random.default_rng(0).integers(30, 220, (16, 16, 3), np.uint8)
    picture = Image.fromarray(noise).filter(ImageFilter.BLUR)
    given = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    for strength in (0.2, 0.8):
        found = OPERATIONS[name](strength, 1).picture(given)
        wanted = torch.from_numpy(np.array(with_pillow(name, strength)(picture))).permute(2, 0, 1)
        assert (found.int() - wanted.int()).abs().max() <= 2


@pytest.mark.usefixtures("float64")
def test_the_loss_of_a_mixture_is_the_mixture_of_losses() -> None:
    task = classification("kind", 4)
    pictures = torch.randint(0, 256, (2, 60, 1, 2, 2), dtype=torch.uint8)
    targets = torch.randint(0, 4, (2, 60))
    batch = Batch(pictures, {"kind": targets}, {})
    found = mixed(batch, [task], 0.4, generators(2)).targets["kind"]
    logits = torch.randn(60, 4)
    losses = task.loss(logits, found[0])
    by_class = torch.stack([F.cross_entropy(logits, torch.full((60,), c), reduction="none") for c in range(4)], 1)  # fmt: skip
    torch.testing.assert_close(losses, (by_class * found[0]).sum(1))
    torch.testing.assert_close(found.sum(2), torch.ones(2, 60))
    own = found.gather(2, targets[..., None])[..., 0]
    assert (own > 0.5).float().mean() > 0.4


def test_shares_are_of_a_beta_distribution() -> None:
    """Variance 1 / (4 (2 alpha + 1)); pictures and labels have the same share."""
    alpha, number = 0.4, 4000
    binary = torch.arange(number) % 2
    pictures = (200 * binary).to(torch.uint8).reshape(1, -1, 1, 1, 1)
    found = mixed(
        Batch(pictures, {"kind": binary[None]}, {}), [classification("kind", 2)], alpha, generators(1)
    )  # fmt: skip
    share = found.targets["kind"][0, :, 1]
    torch.testing.assert_close(
        shared_inputs(found).float().flatten() / 200, share.float(), atol=0.003, rtol=0
    )
    differ = share[(share > 0) & (share < 1)]
    assert abs(differ.mean() - 0.5) < 0.03
    assert abs(differ.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_a_mixture_is_labelled_where_both_are() -> None:
    mask = torch.rand(1, 500) < 0.5
    batch = Batch(
        torch.zeros(1, 500, 1, 2, 2, dtype=torch.uint8),
        {"kind": torch.zeros(1, 500).long()},
        {"kind": mask},
    )
    found = mixed(batch, [classification("kind", 2)], 1.0, generators(1)).masks["kind"]
    assert not (found & ~mask).any()
    assert 0.15 < found.float().mean() < 0.35


@pytest.mark.parametrize("learner", ["maml", "protonet", "r2d2", "cnp"])
@pytest.mark.parametrize("ways", [2, [2, 3]])
def test_learners_train_on_changed_pictures(tmp_path: Path, learner: str, ways: Any) -> None:
    rng = np.random.default_rng(0)
    for name in "abcdefghi":
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(
                tmp_path / name / f"{i}.png"
            )
    own = source(
        tmp_path, episodes="classes", ways=ways, augment={**ALL, "mixup": 0.5}, split={"fractions": [1, 1, 1]}
    )  # fmt: skip
    experiment = Experiment.model_validate(
        {"data": own, "encoder": {"name": "conv", "channels": [4, 4]}, "learner": {"name": learner}}
    ).resolve()
    episodes, _ = build_episodes(own, own.load(), seed=0, split="train", step=0, indices=range(4))
    algorithm = experiment.build()
    meta = meta_gradient(algorithm, algorithm.init_params(), on_device(episodes, "cpu"))
    assert all(grad.isfinite().all() for grad in meta.grads.values())
    assert meta.losses.isfinite().all()


def test_what_cannot_change_is_refused(tmp_path: Path) -> None:
    table = write_csv(
        tmp_path / "t.csv", {"x": [v * v % 7 for v in range(40)], "y": [v % 2 for v in range(40)]}
    )
    with pytest.raises(UserError, match=r"data\.augment: expected inputs that are pictures"):
        Files(path=str(table), tasks={"y": {}}, augment={"flip": True}).resolve()
    root = write_scenes(tmp_path / "scenes")
    tasks = {"mask": {"classes": ["floor", "box", "disc"]}}
    with pytest.raises(
        UserError, match=r"data\.augment\.mixup: .* task 'mask' of kind segmentation"
    ):
        Files(path=str(root), tasks=tasks, size=8, augment={"mixup": 0.2}).resolve()
    turned = {"normals": {"path": str(root / "normals")}}
    with pytest.raises(UserError, match=r"data\.augment\.trivial: .* task 'normals'"):
        Files(path=str(root / "images"), tasks=turned, size=8, augment={"trivial": True}).resolve()
    assert (
        Files(path=str(root / "images"), tasks=turned, size=8, augment={"flip": True})
        .resolve()
        .augment
        is not None
    )


def test_changes_find_nothing_anew(tmp_path: Path) -> None:
    """What was found in the files does not depend on how pictures change."""
    own = source(in_classes(tmp_path / "all"))
    other = own.model_copy(update={"augment": Augment(flip=True)})
    assert own.digest() == other.digest()


def test_mixed_labels_are_written_by_their_shares(tmp_path: Path) -> None:
    own = source(in_classes(tmp_path / "all"), queries=8, augment={"mixup": 1.0})
    episode = drawn(own, "train", [0])
    shares = episode.query.targets["kind"][0]
    for value in shares:
        words = [f"{share:.0%} {name}" for name, share in zip("abc", value.tolist(), strict=True) if share >= 0.005]  # fmt: skip
        assert label_text(own.make_tasks()[0].kind, value, "abc") == ", ".join(words)
