"""CIFAR-100: its three forms on pictures that carry their own number, the reader on a small folder, and real data."""

import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymtl.config import Experiment
from raymtl.data import CIFAR100, SPLITS
from raymtl.data.base import Split
from raymtl.data.episodes import build_episodes, on_device
from raymtl.data.formats.cifar100 import COARSE, read_pictures
from raymtl.data.random_crops import augmented
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import Episode, UserError
from tests.narrowing import checked, own_inputs, shared_inputs

PER_CLASS = {"train": 12, "test": 5}
needs_data = pytest.mark.skipif(
    "RAYMTL_DATA" not in os.environ, reason="needs CIFAR-100 in $RAYMTL_DATA"
)


def names() -> list[str]:
    """In an order of their own; those that a published split holds out have their real names."""
    held = [name for part in ("val", "test") for name in CIFAR_FS_BY_HAND[part].split()]
    return [f"kind_{i:02d}" for i in range(100 - len(held))] + held


CIFAR_FS_BY_HAND = {
    "val": "otter motorcycle television lamp crocodile shark butterfly beaver beetle tractor flatfish maple_tree camel crab sea cattle",
    "test": "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table telephone wardrobe whale woman worm",
}


def contents(seed: int = 0) -> dict[str, dict[str, Any]]:
    """Pictures whose first red pixels are part, class and number in the class; classes go round the superclasses."""
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, Any]] = {
        "meta": {"fine_label_names": names(), "coarse_label_names": list(COARSE)}
    }
    for part, of_class in PER_CLASS.items():
        fine = rng.permutation(np.repeat(np.arange(100), of_class))
        data = rng.integers(256, size=(len(fine), 3, 32, 32), dtype=np.uint8)
        data[:, 0, 0, 0] = part == "test"
        data[:, 0, 0, 1] = fine
        seen: Counter[int] = Counter()
        for row, label in enumerate(fine.tolist()):
            data[row, 0, 0, 2] = seen[label]
            seen[label] += 1
        found[part] = {
            "filenames": [f"{row}.png" for row in range(len(fine))],
            "batch_label": "one",
            "data": data.reshape(len(fine), -1),
            "fine_labels": fine.tolist(),
            "coarse_labels": (fine % 20).tolist(),
        }
    return found


def write(root: Path, found: dict[str, dict[str, Any]], protocol: int = 4) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True, exist_ok=True)
    for part, content in found.items():
        pickled = pickle.dumps(content, protocol)
        (folder / part).write_bytes(
            pickled.replace(b"numpy._core.", b"numpy.core.") if protocol == 2 else pickled
        )
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"), contents())


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymtl.data.sources.cifar100.PARTS", PER_CLASS)
    monkeypatch.setattr("raymtl.data.formats.cifar100.PARTS", PER_CLASS)


def small(root: Path, **values: Any) -> CIFAR100:
    defaults = {"held_out": 3, "shots": 2, "queries": 5, "augment": False}
    return CIFAR100(folder=str(root), **defaults | values)


def told(pictures: torch.Tensor) -> list[tuple[int, int, int]]:
    """(of the test set or not, class, number in the class) of pictures [N, 3, 32, 32]."""
    return [(int(part), int(label), int(place)) for part, label, place in pictures[:, 0, 0, :3]]


def build(
    source: CIFAR100, count: int, split: Split = "train", seed: int = 0, step: int = 0
) -> tuple[Episode, list[str]]:
    (stack,), domains = build_episodes(
        source, source.load(), seed=seed, split=split, step=step, indices=range(count)
    )
    return stack, domains


def test_every_superclass_is_a_five_class_task(root: Path) -> None:
    """With inputs of its own."""
    episodes, _ = build(small(root), 4)
    assert set(episodes.query.inputs) == set(COARSE)
    for number, name in enumerate(COARSE):
        classes = [
            number + 20 * label for label in range(5)
        ]  # ascending, as the labels within the task
        for index in range(4):
            drawn = []
            for batch, size in ((episodes.support, 2), (episodes.query, 5)):
                pictures = own_inputs(batch, name)[index]
                labels = batch.targets[name][index]
                assert pictures.shape == (size, 3, 32, 32) and pictures.dtype == torch.uint8
                assert [c for _, c, _ in told(pictures)] == [
                    classes[label] for label in labels.tolist()
                ]
                drawn += told(pictures)
            assert len(set(drawn)) == 7


def test_fine_and_coarse_label_the_same_picture(root: Path) -> None:
    source = small(root, episodes="fine_and_coarse", queries=298)
    episodes, _ = build(source, 2)
    for index in range(2):
        seen = []
        for batch in episodes:
            numbers = told(shared_inputs(batch)[index])
            assert batch.targets["fine"][index].tolist() == [c for _, c, _ in numbers]
            assert batch.targets["coarse"][index].tolist() == [c % 20 for _, c, _ in numbers]
            seen += numbers
        assert len(set(seen)) == len(seen) == 300
    assert [(task.name, task.out_features) for task in source.make_tasks()] == [
        ("fine", 100),
        ("coarse", 20),
    ]
    assert source.sizes(source.load()) == {"fine": 900, "coarse": 900}


@pytest.mark.parametrize("episodes", ["superclasses", "fine_and_coarse"])
def test_validation_is_balanced_training_data(root: Path, episodes: str) -> None:
    """The test split is the test set."""
    source = small(root, episodes=episodes)
    arrays = source.load()
    seen = {
        split: told(torch.from_numpy(arrays["pictures"][arrays[split].reshape(-1)]))
        for split in SPLITS
    }
    numbers: dict[Split, tuple[int, int]] = {"train": (9, 0), "val": (3, 0), "test": (5, 1)}
    for split, (of_class, of_test) in numbers.items():
        assert Counter(c for _, c, _ in seen[split]) == dict.fromkeys(range(100), of_class)
        assert {part for part, _, _ in seen[split]} == {of_test}
    assert len(set(seen["train"]) | set(seen["val"])) == 1200
    other = small(root, episodes=episodes, split_seed=1).load()
    assert not np.array_equal(arrays["val"], other["val"])
    assert np.array_equal(arrays["val"], source.load()["val"])


def test_few_shot_episodes_name_their_classes(root: Path) -> None:
    source = small(root, episodes="classes", ways=4, shots=3, queries=6)
    episodes, domains = build(source, 30)
    assert shared_inputs(episodes.support).shape == (30, 12, 3, 32, 32)
    parts = set()
    for index, domain in enumerate(domains):
        drawn: list[tuple[int, int, int]] = []
        classes: dict[int, set[int]] = {}
        for batch, per_class in ((episodes.support, 3), (episodes.query, 6)):
            labels = batch.targets["class"][index]
            assert torch.equal(labels.bincount(), torch.full((4,), per_class))
            for label, picture in zip(
                labels.tolist(), told(shared_inputs(batch)[index]), strict=True
            ):
                classes.setdefault(label, set()).add(picture[1])
                drawn.append(picture)
                parts.add(picture[0])
        assert all(len(members) == 1 for members in classes.values()) and len(set(drawn)) == 36
        assert domain == ", ".join(names()[classes[label].pop()] for label in range(4))
    assert parts == {0, 1}  # pictures of both files


def test_cifar_fs_holds_out_its_authors_classes(root: Path) -> None:
    source = small(root, episodes="classes")
    arrays = source.load()
    for split, size in {"train": 64, "val": 16, "test": 20}.items():
        held = {
            names()[c]
            for _, c, _ in told(torch.from_numpy(arrays["pictures"][arrays[split].reshape(-1)]))
        }
        assert held == (
            set(CIFAR_FS_BY_HAND[split].split()) if split != "train" else set(names()[:64])
        )
        assert len(held) == size and sorted(held) == sorted(arrays[f"names/{split}"])
        assert arrays[split].shape == (size, 17)
    assert source.sizes(arrays) == {"class": 64 * 17}


def test_fc100_holds_out_whole_superclasses(root: Path) -> None:
    arrays = small(root, episodes="classes", split="fc100").load()
    held = {"val": {8, 11, 13, 16}, "test": {0, 7, 12, 14}}
    for split, size in {"train": 60, "val": 20, "test": 20}.items():
        numbers = told(torch.from_numpy(arrays["pictures"][arrays[split].reshape(-1)]))
        assert {c % 20 for _, c, _ in numbers} == held.get(
            split, set(range(20)) - held["val"] - held["test"]
        )
        assert arrays[split].shape == (size, 17)


def test_ways_and_shots_may_vary_by_episode(root: Path) -> None:
    source = small(root, episodes="classes", ways=(2, 4), shots=(1, 3))
    stacks, _ = build_episodes(
        source, source.load(), seed=0, split="test", step=0, indices=range(90)
    )
    numbers = {
        (int(s.query.targets["class"].max()) + 1, shared_inputs(s.support).shape[1]) for s in stacks
    }
    assert numbers == {(way, way * shots) for way in (2, 3, 4) for shots in (1, 2, 3)}
    assert source.make_tasks()[0].out_features == 4


def reference_crop(picture: torch.Tensor) -> set[bytes]:
    """All that padding by 4, cropping and flipping can make of a picture, one by one."""
    padded = torch.nn.functional.pad(picture, (4, 4, 4, 4))
    crops = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    return {
        c.numpy().tobytes()
        for crop in crops
        for c in (crop.contiguous(), crop.flip(-1).contiguous())
    }


def test_augmentation_draws_every_crop_alike() -> None:
    """Of the padded picture and of its mirror."""
    picture = torch.randint(1, 256, (3, 32, 32), dtype=torch.uint8)
    number = 16200
    rng = np.random.default_rng(0)
    down, right = rng.integers(9, size=(2, number))
    is_flipped = rng.random(number) < 0.5
    made = augmented(np.repeat(picture[None].numpy(), number, 0), down, right, is_flipped)
    counts = Counter(one.tobytes() for one in made)
    assert set(counts) == reference_crop(picture)
    assert all(50 < count < 160 for count in counts.values())  # 100 on average


def test_augmentation_is_for_training_alone(root: Path) -> None:
    """The labels stay the same."""
    for split in SPLITS:
        plain, _ = build(small(root), 3, split)
        moved, _ = build(small(root, augment=True), 3, split)
        for part, other in zip(plain, moved, strict=True):
            assert all(torch.equal(part.targets[name], other.targets[name]) for name in COARSE)
            same = [torch.equal(own_inputs(part, name), own_inputs(other, name)) for name in COARSE]
            assert not any(same) if split == "train" else all(same)
    name = "fish"
    for picture, changed in zip(
        own_inputs(build(small(root), 1)[0].query, name)[0],
        own_inputs(build(small(root, augment=True), 1)[0].query, name)[0],
        strict=True,
    ):
        assert changed.numpy().tobytes() in reference_crop(picture)


@pytest.mark.parametrize("episodes", ["superclasses", "fine_and_coarse", "classes"])
def test_episodes_depend_on_their_index_alone(root: Path, episodes: str) -> None:
    """An episode is a function of seed, split, step and index."""
    source = small(root, episodes=episodes, augment=True)
    task = source.task_names[0]

    def seen(stack: Any, index: int) -> Any:
        inputs = stack.query.inputs
        return (inputs if isinstance(inputs, torch.Tensor) else inputs[task])[index]

    whole, _ = build(source, 6, step=4)
    (alone,), _ = build_episodes(source, source.load(), seed=0, split="train", step=4, indices=[5])
    assert torch.equal(seen(whole, 5), seen(alone, 0))
    for other in (
        build(source, 6, step=5),
        build(source, 6, seed=1, step=4),
        build(source, 6, "val", step=4),
    ):
        assert not torch.equal(seen(whole, 5), seen(other[0], 5))


def test_some_of_the_tasks_can_be_taken_alone(root: Path) -> None:
    source = small(root).select_tasks(("trees", "fish"))
    assert CIFAR100.model_validate(source.model_dump()) == source
    assert (
        source.task_names == ("trees", "fish") == tuple(task.name for task in source.make_tasks())
    )
    episodes, _ = build(source, 2)
    assert tuple(episodes.query.inputs) == ("trees", "fish")
    assert {c % 20 for _, c, _ in told(own_inputs(episodes.query, "trees")[0])} == {
        COARSE.index("trees")
    }
    assert tuple(source.sizes(source.load())) == ("trees", "fish")
    coarse, _ = build(small(root, episodes="fine_and_coarse").select_tasks(("coarse",)), 1)
    assert set(coarse.query.targets) == {"coarse"}


def test_supervised_episodes_keep_every_label(root: Path) -> None:
    for episodes, labelled in {"superclasses": 7, "classes": 5 * 7}.items():
        source = small(root, episodes=episodes).as_supervised()
        assert CIFAR100.model_validate(source.model_dump()) == source
        assert len(build(source, 1)[0].query.targets[source.task_names[0]][0]) == labelled
    every = small(root, episodes="classes", shots=2, queries=15).as_supervised()
    assert every.queries == 16 and shared_inputs(build(every, 1)[0].query).shape[1] == 80


@pytest.mark.parametrize(
    ("sharing", "weighting"),
    [("hard", "pcgrad"), ("cross_stitch", "nash_mtl"), ("mmoe", "uncertainty")],
)
def test_a_step_of_twenty_tasks_moves_every_head(root: Path, sharing: str, weighting: str) -> None:
    values = {
        "data.name": "cifar100",
        "data.folder": str(root),
        "data.held_out": 3,
        "data.queries": 4,
    }
    values |= {
        "encoder.name": "conv",
        "encoder.channels": [4, 4],
        "learner.inner_steps": 0,
        "sharing.name": sharing,
    }
    chosen = Experiment().override(values | {"weighting.name": weighting, "train.meta_batch": 2})
    built, _ = build_episodes(
        chosen.data, chosen.data.load(), seed=0, split="train", step=0, indices=range(2)
    )
    algorithm = chosen.build()
    meta = meta_gradient(algorithm, algorithm.init_params(), on_device(built, "cpu"))
    assert meta.losses.shape == (20,) and meta.losses.isfinite().all()
    assert all(meta.grads[f"model.heads.{name}.weight"].abs().sum() > 0 for name in COARSE)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"tasks": ("fish", "birds")},
            "data.tasks: expected some of aquatic_mammals, .*, got 'birds'",
        ),
        (
            {"tasks": ("fish",), "episodes": "classes"},
            "data.tasks: expected some of class, .* got 'fish'",
        ),
        ({"tasks": ("fish", "fish")}, "data.tasks: expected every task once"),
        ({"held_out": 12}, "data.held_out: expected at most 11 of the 12 pictures"),
        (
            {"episodes": "classes", "ways": 17},
            "data.ways: expected at most the 16 classes of the smallest split",
        ),
        (
            {"episodes": "classes", "ways": (2, 21), "split": "fc100"},
            "data.ways: expected at most the 20 classes",
        ),
        (
            {"episodes": "classes", "shots": 3, "queries": 15},
            "data.queries: expected at most 17 pictures together",
        ),
        (
            {"held_out": 3, "shots": (1, 4), "queries": 12},
            "data.queries: expected at most 15 pictures together",
        ),
    ],
)
def test_impossible_sources_are_refused(root: Path, values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        small(root, **values)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_pickle_protocol_is_read(tmp_path: Path, root: Path, protocol: int) -> None:
    found = contents()
    if protocol == 2:  # as Python 2 wrote them: texts for bytes, and numpy's old module
        for part in PER_CLASS:
            found[part]["data"] = Python2(found[part]["data"])
    read = read_pictures(write(tmp_path, found, protocol))
    again = read_pictures(root)
    assert np.array_equal(read.pictures, again.pictures) and read.pictures.shape == (
        1700,
        3,
        32,
        32,
    )
    for part, first in (("train", 0), ("test", 1)):
        for label in (0, 57, 99):
            numbers = told(torch.from_numpy(read.pictures[read.members[part][label]]))
            assert numbers == [(first, label, i) for i in range(PER_CLASS[part])]
    assert read.coarse.tolist() == [c % 20 for c in range(100)] and read.names.tolist() == names()
    assert not any(
        array.flags.writeable for array in (read.pictures, read.coarse, read.members["train"])
    )


class Python2:
    """Pickles as an array of Python 2's numpy does, its bytes as a text of Latin-1."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __reduce__(self) -> Any:
        reduced: tuple[Any, ...] = checked(self.array.__reduce__(), tuple)
        make, given, (version, shape, kind, order, raw) = reduced
        return make, (given[0], given[1], "b"), (version, shape, kind, order, raw.decode("latin1"))


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.function, self.given = function, given

    def __reduce__(self) -> Any:
        return self.function, self.given


def test_pickles_that_call_functions_are_refused(tmp_path: Path) -> None:
    """They do nothing."""
    touched = tmp_path / "touched"
    for number, call in enumerate(
        [
            Calls(os.mkdir, str(touched)),
            Calls(eval, f"open({str(touched)!r}, 'w')"),
            Calls(np.fromfile, str(touched)),
        ]
    ):
        found = contents()
        found["train"]["data"] = call
        root = write(tmp_path / str(number), found)
        with pytest.raises(
            UserError,
            match=r"data.folder: expected .*train to hold arrays.*it asks for .*data fetch",
        ):
            read_pictures(root)
        assert not touched.exists()


def changed(part: str, key: str, change: Any) -> dict[str, dict[str, Any]]:
    found = contents()
    found[part][key] = change(found[part][key])
    return found


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (changed("train", "fine_labels", lambda v: [*v[:-1], 100]), "expected 12 pictures of each of 100 classes in .*train"),
        (changed("train", "fine_labels", lambda v: v[:-1]), "with 1199 and 1200 labels"),
        (changed("train", "fine_labels", lambda v: None), "expected the lists fine_labels, coarse_labels in .*train"),
        (changed("test", "fine_labels", lambda v: [*v[:-1], "fish"]), "expected the lists fine_labels.* in .*test"),
        (changed("test", "coarse_labels", lambda v: [v[0] ^ 1, *v[1:]]), "expected one superclass for every class"),
        (changed("test", "data", lambda v: v[:-1]), r"expected 500 pictures of 3072 bytes .*got uint8 of shape \(499, 3072\)"),
        (changed("test", "data", lambda v: v.astype(float)), "got float64 of shape"),
        (changed("test", "data", lambda v: None), "got object of shape"),
        (changed("meta", "coarse_label_names", lambda v: v[::-1]), "the 100 classes and 20 superclasses .*meta, got others"),
        (changed("meta", "fine_label_names", lambda v: v[:-1] + v[:1]), "the 100 classes and 20 superclasses"),
    ],
)  # fmt: skip
def test_other_contents_are_answered_with_the_file(
    tmp_path: Path, found: dict[str, Any], says: str
) -> None:
    with pytest.raises(
        UserError, match=f"data.folder: .*{says}.*raymtl data fetch cifar100"
    ) as caught:
        read_pictures(write(tmp_path, found))
    assert "\n" not in str(caught.value)


def test_broken_data_is_answered_with_the_remedy(tmp_path: Path) -> None:
    written = write(tmp_path, contents()) / "cifar-100-python" / "train"
    for number, content in enumerate((b"", b"not a pickle", written.read_bytes()[:100_000])):
        broken = write(tmp_path / str(number), contents())
        (broken / "cifar-100-python" / "train").write_bytes(content)
        with pytest.raises(
            UserError, match="train to hold arrays, lists, numbers and texts alone"
        ) as caught:
            read_pictures(broken)
        assert "\n" not in str(caught.value)


@needs_data
def test_mean_pictures_tell_real_classes_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nearest class mean of the training pictures: above the chance of 1 in 5 on test pictures of most superclasses."""
    monkeypatch.setattr("raymtl.data.sources.cifar100.PARTS", {"train": 500, "test": 100})
    monkeypatch.setattr("raymtl.data.formats.cifar100.PARTS", {"train": 500, "test": 100})
    arrays = CIFAR100().load()
    assert arrays["pictures"].shape == (60000, 3, 32, 32)
    assert [arrays[split].shape for split in SPLITS] == [(100, 450), (100, 50), (100, 100)]
    means = np.stack([arrays["pictures"][rows[:100]].mean(0) for rows in arrays["train"]]).reshape(
        100, -1
    )
    better = 0
    for coarse in range(20):
        own = np.flatnonzero(arrays["coarse"] == coarse)
        tested = arrays["pictures"][arrays["test"][own]][:, :40].reshape(5, 40, 1, -1)
        nearest = ((tested - means[own]) ** 2).sum(-1).argmin(-1)
        better += float((nearest == np.arange(5)[:, None]).mean()) > 0.25
    assert better >= 18


@needs_data
def test_the_real_cifar_fs_split_is_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raymtl.data.sources.cifar100.PARTS", {"train": 500, "test": 100})
    monkeypatch.setattr("raymtl.data.formats.cifar100.PARTS", {"train": 500, "test": 100})
    for split, sizes in {"cifar_fs": (64, 16, 20), "fc100": (60, 20, 20)}.items():
        arrays = CIFAR100(episodes="classes", split=split).load()
        assert tuple(len(arrays[part]) for part in SPLITS) == sizes
