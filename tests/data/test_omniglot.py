"""Omniglot: its splits and classes on drawings that carry their own number, the reader on a small folder, and real data."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raymtl.data import SPLITS, Omniglot
from raymtl.data.base import Split
from raymtl.data.episodes import build_episodes, on_device
from raymtl.data.sources.omniglot import PARTS, read_drawings
from raymtl.types import Episode, UserError
from tests.narrowing import shared_inputs

SHORT = Omniglot(folder="numbered", ways=7, shots=2, queries=3)
needs_data = pytest.mark.skipif(
    "RAYMTL_DATA" not in os.environ, reason="needs Omniglot in $RAYMTL_DATA"
)


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every drawing carries a white corner, the character's number in base 100, and the drawing's own number."""
    drawings = np.zeros((1623, 20, 28, 28), np.uint8)
    drawings[..., 0, 0] = 255
    drawings[..., 0, 1] = np.arange(1623)[:, None] // 100
    drawings[..., 0, 2] = np.arange(1623)[:, None] % 100
    drawings[..., 0, 3] = np.arange(20)
    read = drawings, np.array([f"Alphabet {number}" for number in range(1623)])
    monkeypatch.setattr("raymtl.data.sources.omniglot.read_drawings", lambda root: read)


def told(pictures: torch.Tensor) -> list[tuple[int, int, int]]:
    """(character, quarter turns counter-clockwise, drawing) of pictures [N, 1, 28, 28]."""
    found = []
    for picture in pictures[:, 0]:
        turned = next(turn for turn in range(4) if picture.rot90(-turn)[0, 0] == 255)
        upright = picture.rot90(-turned)[0]
        found.append((int(upright[1]) * 100 + int(upright[2]), turned, int(upright[3])))
    return found


def build(
    source: Omniglot, count: int, split: Split = "train", seed: int = 0, step: int = 0
) -> tuple[Episode, list[str]]:
    (stack,), domains = build_episodes(
        source, source.load(), seed=seed, split=split, step=step, indices=range(count)
    )
    return stack, domains


def test_a_class_is_a_rotated_character(numbered: None) -> None:
    """No drawing comes twice."""
    episodes, domains = build(SHORT, 40)
    assert shared_inputs(episodes.support).shape == (40, 14, 1, 28, 28)
    assert shared_inputs(episodes.query).dtype == torch.uint8
    turns = set()
    for index, domain in enumerate(domains):
        classes: dict[int, set[tuple[int, int]]] = {label: set() for label in range(7)}
        drawn = []
        for batch, per_class in ((episodes.support, 2), (episodes.query, 3)):
            labels = batch.targets["character"][index]
            assert torch.equal(labels.bincount(), torch.full((7,), per_class))
            for label, (character, turn, drawing) in zip(
                labels.tolist(), told(shared_inputs(batch)[index]), strict=True
            ):
                classes[label].add((character, turn))
                drawn.append((character, turn, drawing))
                turns.add(turn)
        assert all(len(members) == 1 for members in classes.values())
        assert len(set.union(*classes.values())) == 7
        assert len(set(drawn)) == len(drawn)
        named = [
            f"Alphabet {c}" + (f" at {90 * t}°" if t else "") for ((c, t),) in classes.values()
        ]
        assert domain == ", ".join(named)
    assert turns == {0, 1, 2, 3}


def test_training_may_have_more_ways(
    numbered: None,
) -> None:
    """The heads are as wide as the widest episode."""
    source = SHORT.model_copy(update={"train_ways": 30})
    assert source.make_tasks()[0].out_features == 30
    assert SHORT.model_copy(update={"train_ways": 3}).make_tasks()[0].out_features == 7
    ways_of: dict[Split, int] = {"train": 30, "val": 7, "test": 7}
    for split, ways in ways_of.items():
        (episodes,), _ = build_episodes(
            source, source.load(), seed=0, split=split, step=0, indices=range(2)
        )
        assert torch.equal(episodes.support.targets["character"][0].unique(), torch.arange(ways))
    for split in SPLITS[1:]:  # and those of the others stay what they were
        assert torch.equal(
            shared_inputs(build(source, 3, split)[0].query),
            shared_inputs(build(SHORT, 3, split)[0].query),
        )


def test_ways_and_shots_may_vary_by_episode(numbered: None) -> None:
    source = SHORT.model_copy(update={"train_ways": (3, 9), "ways": (2, 4), "shots": (1, 3)})
    arrays = source.load()
    ways_of: dict[Split, range] = {"train": range(3, 10), "test": range(2, 5)}
    for split, ways in ways_of.items():
        stacks, _ = build_episodes(source, arrays, seed=0, split=split, step=0, indices=range(120))
        numbers = {
            (int(s.query.targets["character"].max()) + 1, shared_inputs(s.support).shape[1])
            for s in stacks
        }
        assert numbers == {(way, way * shots) for way in ways for shots in (1, 2, 3)}


def test_without_rotations_every_character_is_upright(numbered: None) -> None:
    episodes, _ = build(SHORT.model_copy(update={"rotations": False}), 10)
    assert {turn for inputs in shared_inputs(episodes.query) for _, turn, _ in told(inputs)} == {0}


def test_splits_share_no_character(numbered: None) -> None:
    """They hold 1100, 100 and the rest."""
    arrays = SHORT.load()
    assert [len(arrays[split]) for split in SPLITS] == [1100, 100, 423]
    assert sorted(np.concatenate([arrays[split] for split in SPLITS])) == list(range(1623))
    seen = [
        {c for i in shared_inputs(build(SHORT, 60, split)[0].query) for c, _, _ in told(i)}
        for split in SPLITS
    ]
    assert all(
        characters <= set(arrays[split]) for characters, split in zip(seen, SPLITS, strict=True)
    )
    again, other = SHORT.load(), SHORT.model_copy(update={"split_seed": 1}).load()
    assert np.array_equal(arrays["train"], again["train"])
    assert not np.array_equal(arrays["train"], other["train"])


def test_the_background_split_tests_on_the_evaluation_set(numbered: None) -> None:
    arrays = Omniglot(folder="numbered", split="background").load()
    assert [len(arrays[split]) for split in SPLITS] == [864, 100, 659]
    assert sorted(np.concatenate([arrays["train"], arrays["val"]])) == list(range(964))
    assert sorted(arrays["test"]) == list(range(964, 1623))


def test_episodes_depend_on_their_index_alone(numbered: None) -> None:
    """An episode is a function of seed, split, step and index."""
    whole, domains = build(SHORT, 6, step=4)
    (alone,), (domain,) = build_episodes(
        SHORT, SHORT.load(), seed=0, split="train", step=4, indices=[5]
    )
    assert domain == domains[5]
    assert torch.equal(shared_inputs(whole.query)[5], shared_inputs(alone.query)[0])
    others = [
        build(SHORT, 6, step=5),
        build(SHORT, 6, seed=1, step=4),
        build(SHORT, 6, "val", step=4),
    ]
    assert all(
        not torch.equal(shared_inputs(whole.support), shared_inputs(other.support))
        for other, _ in others
    )


@pytest.mark.parametrize(("shots", "queries", "labelled"), [(2, 3, 5), (5, 15, 19)])
def test_supervised_episodes_keep_every_label(
    numbered: None, shots: int, queries: int, labelled: int
) -> None:
    source = Omniglot(folder="numbered", shots=shots, queries=queries).as_supervised()
    assert Omniglot.model_validate(source.model_dump()) == source
    assert shared_inputs(build(source, 1)[0].query).shape[1] == 5 * labelled


def test_sizes_count_drawings_of_all_classes(numbered: None) -> None:
    assert SHORT.sizes(SHORT.load()) == {"character": 1100 * 4 * 20}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"ways": 401}, "data.ways: expected at most the 400 classes"),
        ({"ways": 101, "rotations": False}, "data.ways: expected at most the 100 classes"),
        ({"ways": (2, 401)}, "data.ways: expected at most the 400 classes"),
        (
            {"train_ways": 4401},
            "data.train_ways: expected at most the 4400 classes of the training split",
        ),
        (
            {"train_ways": 865, "rotations": False, "split": "background"},
            "expected at most the 864 classes",
        ),
        ({"shots": 5, "queries": 16}, "data.queries: expected at most the 15 drawings"),
        ({"shots": (1, 5), "queries": 16}, "data.queries: expected at most the 15 drawings"),
    ],
)
def test_impossible_sources_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Omniglot(**values)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two characters in the background, one in the evaluation set; a drawing is a black square on white."""
    monkeypatch.setattr(
        "raymtl.data.sources.omniglot.PARTS", {"images_background": 2, "images_evaluation": 1}
    )
    for order, (part, alphabet, number) in enumerate(
        [
            ("images_background", "B", 1),
            ("images_background", "A", 1),
            ("images_evaluation", "A", 2),
        ]
    ):
        folder = tmp_path / "omniglot-py" / part / alphabet / f"character{number:02d}"
        folder.mkdir(parents=True)
        for drawing in range(20):
            pixels = np.ones((105, 105), bool)
            pixels[: 15 + 15 * order, 60:] = False
            pixels[-1 - drawing :, :30] = False
            Image.fromarray(pixels).save(folder / f"{order}_{drawing:02d}.png")
    return tmp_path


def test_folders_are_read_in_order(small: Any) -> None:
    """With bright strokes."""
    drawings, names = read_drawings(small)
    assert names.tolist() == ["A 01", "B 01", "A 02"]
    assert drawings.shape == (3, 20, 28, 28)
    assert (drawings[:, :, 1, 20] > 250).all()  # a stroke at the top right
    assert (drawings[:, :, 14, 2] < 5).all()  # paper on the left
    heights = (drawings[:, 0, :, 22] > 127).sum(1)
    assert heights.tolist() == [8, 4, 12]
    lengths = drawings[0, :, -6:, 3].astype(int).sum(1)
    assert (np.diff(lengths) >= 0).all() and lengths[-1] > lengths[0]
    assert read_drawings(small)[0] is drawings
    assert not drawings.flags.writeable


def test_a_missing_drawing_names_its_folder(small: Path) -> None:
    next((small / "omniglot-py" / "images_background" / "B" / "character01").glob("*.png")).unlink()
    with pytest.raises(UserError, match=r"expected 20 drawings in .*B/character01, got 19"):
        Omniglot(folder=str(small)).load()


@pytest.mark.slow
@needs_data
def test_pixels_tell_real_characters_apart() -> None:
    """One nearest neighbour: far above chance on every split, and at chance where the labels are shuffled."""
    for split in SPLITS:
        episodes = on_device(build(Omniglot(queries=3), 100, split)[0], "cpu")
        support, query = (
            shared_inputs(episodes.support).flatten(2),
            shared_inputs(episodes.query).flatten(2),
        )
        nearest = torch.cdist(query, support).argmin(-1)
        right = nearest == episodes.query.targets["character"]
        assert float(right.float().mean()) > 0.35
        shuffled = episodes.query.targets["character"].flip(-1)[:, torch.randperm(15)]
        assert float((nearest == shuffled).float().mean()) == pytest.approx(0.2, abs=0.06)


@needs_data
def test_real_data_is_complete() -> None:
    """Its strokes are bright on dark."""
    arrays = Omniglot(rotations=False).load()
    assert arrays["drawings"].shape == (sum(PARTS.values()), 20, 28, 28)
    assert len(set(arrays["names"].tolist())) == 1623
    share = (arrays["drawings"] > 127).mean((1, 2, 3))
    assert share.min() > 0.005 and share.max() < 0.2
