"""MultiMNIST: its pairs and splits on digits that carry their own number, the reader on small files, and real data."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymtl.data import SPLITS, MultiMNIST
from raymtl.data.base import Split
from raymtl.data.episodes import build_episodes
from raymtl.data.sources.multimnist import compose, read_digits
from raymtl.types import Episode, UserError
from tests.narrowing import shared_inputs

SHORT = MultiMNIST(folder="numbered", shots=3, queries=20)
needs_data = pytest.mark.skipif(
    "RAYMTL_DATA" not in os.environ, reason="needs MNIST in $RAYMTL_DATA"
)


@pytest.fixture(scope="module")
def numbers() -> tuple[np.ndarray, np.ndarray]:
    """Every digit carries its number in base 256 in two corners that no other digit covers, and its label is made of it."""
    digits = np.zeros((70_000, 28, 28), np.uint8)
    index = np.arange(70_000)
    for place in (0, 1, 2):
        digits[:, 0, place] = digits[:, -1, -1 - place] = index // 256**place % 256
    return digits, index * 7 % 10


@pytest.fixture
def numbered(numbers: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymtl.data.sources.multimnist.read_digits", lambda root: numbers)


def told(pictures: torch.Tensor) -> torch.Tensor:
    """The numbers of the left and the right digit, [N, 2], of pictures [N, 1, 36, 36]."""
    corners = pictures[:, 0, 0, :3], pictures[:, 0, -1, -3:].flip(-1)
    return torch.stack([corner.long() @ torch.tensor([1, 256, 256**2]) for corner in corners], 1)


def build(
    source: MultiMNIST, count: int = 1, split: Split = "train", seed: int = 0, step: int = 0
) -> Episode:
    (stack,), _ = build_episodes(
        source, source.load(), seed=seed, split=split, step=step, indices=range(count)
    )
    return stack


def pairs_of(source: MultiMNIST, split: Split = "train", step: int = 0) -> np.ndarray:
    """The pairs of an episode, each as one number, [N]."""
    support, query = build(source, 1, split, step=step)
    return coded(told(torch.cat([shared_inputs(support)[0], shared_inputs(query)[0]])).numpy())


def coded(pairs: np.ndarray) -> np.ndarray:
    codes: np.ndarray = pairs[:, 0] * 70_000 + pairs[:, 1]
    return codes


def test_pictures_overlay_two_digits() -> None:
    """The brighter of both counts; they lie in opposite corners."""
    digits = np.random.default_rng(0).integers(256, size=(5, 28, 28), dtype=np.uint8)
    pictures = compose(digits, np.array([0, 3]), np.array([4, 1]))
    for picture, (left, right) in zip(pictures[:, 0].tolist(), [(0, 4), (3, 1)], strict=True):
        for row in range(36):
            for column in range(36):
                seen = [0]
                if row < 28 and column < 28:
                    seen.append(int(digits[left, row, column]))
                if row >= 8 and column >= 8:
                    seen.append(int(digits[right, row - 8, column - 8]))
                assert picture[row][column] == max(seen)


@pytest.mark.parametrize("pairs", ["fixed", "fresh"])
def test_labels_are_those_of_the_digits(numbered: None, pairs: str) -> None:
    for split in SPLITS:
        episodes = build(SHORT.model_copy(update={"pairs": pairs}), 5, split)
        assert shared_inputs(episodes.support).shape == (5, 3, 1, 36, 36)
        assert shared_inputs(episodes.query).shape == (5, 20, 1, 36, 36)
        assert shared_inputs(episodes.query).dtype == torch.uint8
        for batch in episodes:
            shown = told(shared_inputs(batch).flatten(0, 1)) * 7 % 10
            for side, name in enumerate(("left", "right")):
                assert torch.equal(batch.targets[name].flatten(), shown[:, side])


@pytest.mark.parametrize("pairs", ["fixed", "fresh"])
def test_splits_share_no_digit(numbered: None, pairs: str) -> None:
    """The test split has the digits of the test set alone."""
    source = SHORT.model_copy(update={"pairs": pairs, "queries": 2_000})
    digits = {split: np.concatenate(np.divmod(pairs_of(source, split), 70_000)) for split in SPLITS}
    assert max(digits["train"].max(), digits["val"].max()) < 60_000 <= digits["test"].min()
    assert not np.intersect1d(digits["train"], digits["val"]).size
    arrays = source.load()
    assert [len(np.unique(arrays[split])) for split in SPLITS] == [55_000, 5_000, 10_000]
    assert [len(arrays[split]) for split in SPLITS] == [60_000, 10_000, 10_000]
    assert np.array_equal(np.unique(arrays["train"]), np.sort(arrays["train_digits"]))


def test_fixed_pairs_use_digits_equally(
    numbered: None,
) -> None:
    """On each side."""
    arrays = SHORT.load()
    for split, (least, most) in {"train": (1, 2), "val": (2, 2), "test": (1, 1)}.items():
        for side in (0, 1):
            times = np.unique(arrays[split][:, side], return_counts=True)[1]
            assert (times.min(), times.max()) == (least, most)
        # By chance a few digits are beside themselves, and no side goes by the order of the other.
        assert (arrays[split][:, 0] == arrays[split][:, 1]).mean() < 0.001
        assert abs(np.corrcoef(arrays[split].T)[0, 1]) < 0.03


def test_only_fresh_pairs_change_by_step(numbered: None) -> None:
    fixed, fresh = (
        SHORT.model_copy(update={"pairs": pairs, "queries": 5_000}) for pairs in ("fixed", "fresh")
    )
    known = {split: coded(fixed.load()[split]) for split in SPLITS}
    one, other = (pairs_of(fixed, step=step) for step in range(2))
    assert all(
        np.isin(pairs, known["train"]).all() and len(np.unique(pairs)) == 5_003
        for pairs in (one, other)
    )
    assert np.intersect1d(one, other).size  # 5,003 of 60,000 twice
    one, other = (pairs_of(fresh, step=step) for step in range(2))
    assert np.intersect1d(one, other).size < 5
    assert np.isin([one, other], known["train"]).mean() < 0.001
    for split in ("val", "test"):
        assert np.isin(pairs_of(fresh, split), known[split]).all()
        assert np.array_equal(pairs_of(fresh, split), pairs_of(fixed, split))


def test_the_pairs_seed_decides_held_out_digits(numbered: None) -> None:
    one, again, other = (SHORT.model_copy(update={"pairs_seed": seed}).load() for seed in (0, 0, 1))
    assert all(np.array_equal(one[split], again[split]) for split in SPLITS)
    shared = len(np.intersect1d(one["val"], other["val"]))
    assert 300 < shared < 550  # of 5,000: a twelfth, as by chance


@pytest.mark.parametrize("pairs", ["fixed", "fresh"])
def test_episodes_depend_on_their_index_alone(numbered: None, pairs: str) -> None:
    """An episode is a function of seed, split, step and index."""
    source = SHORT.model_copy(update={"pairs": pairs})
    whole = build(source, 4, step=4)
    (alone,), _ = build_episodes(source, source.load(), seed=0, split="train", step=4, indices=[3])
    assert torch.equal(shared_inputs(whole.query)[3], shared_inputs(alone.query)[0])
    for other in (
        build(source, 4, step=5),
        build(source, 4, seed=1, step=4),
        build(source, 4, "val", step=4),
    ):
        assert not torch.equal(shared_inputs(whole.query), shared_inputs(other.query))


def test_a_task_alone_sees_the_same_pictures(numbered: None) -> None:
    both, alone = (build(source, 2) for source in (SHORT, SHORT.select_tasks(("right",))))
    assert torch.equal(shared_inputs(both.query), shared_inputs(alone.query))
    assert list(alone.query.targets) == ["right"]
    assert torch.equal(both.query.targets["right"], alone.query.targets["right"])


def test_supervised_episodes_keep_every_label(numbered: None) -> None:
    assert shared_inputs(build(SHORT.as_supervised()).query).shape[1] == 23
    whole = MultiMNIST(folder="numbered", shots=1_000, queries=9_000).as_supervised()
    assert MultiMNIST.model_validate(whole.model_dump()) == whole


def test_sizes_are_those_that_training_draws_from(numbered: None) -> None:
    assert SHORT.sizes(SHORT.load()) == {"left": 60_000, "right": 60_000}
    fresh = SHORT.model_copy(update={"pairs": "fresh"})
    assert fresh.sizes(fresh.load()) == {"left": 55_000, "right": 55_000}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"tasks": ("left", "left")}, "data.tasks: expected every task once"),
        ({"queries": 10_000}, "data.queries: expected at most the 9999 pairs"),
        (
            {"shots": (1, 100), "queries": 9_901},
            r"data.queries: expected at most the 9900 pairs .*data.shots: \(1, 100\)",
        ),
    ],
)
def test_impossible_sources_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        MultiMNIST(**values)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of three and two digits, filled with their number; the labels are 9, 8, 7 and 1, 0."""
    monkeypatch.setattr("raymtl.data.sources.multimnist.FILES", {"train": 3, "t10k": 2})
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, first, labels in (("train", 0, [9, 8, 7]), ("t10k", 3, [1, 0])):
        pixels = np.repeat(np.arange(first, first + len(labels), dtype=np.uint8), 28 * 28)
        header = np.array([2051, len(labels), 28, 28], ">i4")
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header.tobytes() + pixels.tobytes())
        header = np.array([2049, len(labels)], ">i4")
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header.tobytes() + bytes(labels))
    return tmp_path


def test_files_are_read_training_first(small: Any) -> None:
    digits, labels = read_digits(small)
    assert digits.shape == (5, 28, 28)
    assert [(digit.min(), digit.max()) for digit in digits] == [
        (number, number) for number in range(5)
    ]
    assert labels.tolist() == [9, 8, 7, 1, 0]
    assert read_digits(small)[0] is digits
    assert not (digits.flags.writeable or labels.flags.writeable)


def test_broken_files_are_answered_with_the_remedy(small: Path) -> None:
    labels = small / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(
        UserError, match=r"labels from 0 to 9 in t10k-labels-idx1-ubyte, got 10 as number 1\."
    ):
        MultiMNIST(folder=str(small)).load()
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"expected 10 bytes in .*t10k-labels-idx1-ubyte, got 9\."):
        MultiMNIST(folder=str(small)).load()


@needs_data
def test_pixels_tell_real_digits_apart() -> None:
    """The nearest mean picture of a class, of the part of the picture that the other digit leaves free."""
    source = MultiMNIST()
    arrays = source.load()
    assert np.bincount(arrays["labels"]).tolist() == [
        6903,
        7877,
        6990,
        7141,
        6824,
        6313,
        6876,
        7293,
        6825,
        6958,
    ]
    train, test = (source.batch(arrays, arrays[split][:2_000]) for split in ("train", "test"))
    for name, corner in {"left": np.s_[..., :28, :28], "right": np.s_[..., 8:, 8:]}.items():
        seen, unseen = (shared_inputs(batch)[corner].flatten(1).float() for batch in (train, test))
        means = torch.stack([seen[train.targets[name] == digit].mean(0) for digit in range(10)])
        right = torch.cdist(unseen, means).argmin(-1) == test.targets[name]
        assert float(right.float().mean()) > 0.5
