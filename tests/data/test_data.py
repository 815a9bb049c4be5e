"""The digits, the sampler, and what every source promises: what an episode depends on, and what must be disjoint."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch

from raymtl.config import Experiment, parse
from raymtl.data import (
    CIFAR100,
    SPLITS,
    VOC,
    Digits,
    Files,
    MultiMNIST,
    NYUv2,
    Omniglot,
    Prepared,
    Several,
    Sinusoid,
    Source,
    SourceSpec,
)
from raymtl.data.base import Arrays, Split
from raymtl.data.episodes import build_episodes, on_device
from raymtl.data.sources.digit_pictures import compose, rotated
from raymtl.data.sources.digits import CLASS_SPLIT
from raymtl.types import Batch, UserError
from tests.data.blood import small_cells
from tests.data.own import own_shards, own_table
from tests.data.rooms import small_rooms
from tests.narrowing import checked

CLASSES = Digits(episodes="classes", ways=5, shots=1, queries=3)
SOURCES = get_args(get_args(SourceSpec)[0])


def build(
    source: Source,
    arrays: Arrays,
    split: Split = "train",
    step: int = 0,
    indices: Sequence[int] = range(3),
    seed: int = 0,
) -> Any:
    return build_episodes(source, arrays, seed=seed, split=split, step=step, indices=indices)[0][0]


def test_digit_episodes_depend_on_their_index_alone(arrays: dict[str, np.ndarray]) -> None:
    """An episode is a function of seed, step and index."""
    whole = build(Digits(), arrays, step=4, indices=range(6))
    alone = build(Digits(), arrays, step=4, indices=[5])
    assert torch.equal(whole.support.inputs[5], alone.support.inputs[0])
    assert torch.equal(whole.query.targets["sum"][5], alone.query.targets["sum"][0])
    for other in (
        build(Digits(), arrays, step=5, indices=[5]),
        build(Digits(), arrays, step=4, indices=[5], seed=1),
        build(Digits(), arrays, split="val", step=4, indices=[5]),
    ):
        assert not torch.equal(alone.support.inputs, other.support.inputs)


@pytest.mark.parametrize(
    ("source", "holds", "remedy"),
    [
        (CIFAR100(held_out=3, queries=5), "cifar-100-python", "raymtl data fetch cifar100"),
        (MultiMNIST(), "MNIST/raw", "raymtl data fetch mnist"),
        (NYUv2(), "nyuv2", "lorenmt/mtan"),
        (Omniglot(), "omniglot-py", "raymtl data fetch omniglot"),
        (VOC(), "VOCdevkit", "raymtl data fetch voc2007"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_missing_folder_names_the_remedy(
    source: Source, holds: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYMTL_DATA", raising=False)
    with pytest.raises(UserError, match=r"data.folder: expected the folder .*got none") as caught:
        source.load()
    message = str(caught.value)
    assert holds in message and "RAYMTL_DATA" in message and remedy in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (CIFAR100(held_out=3, queries=5), "expected .*cifar-100-python/meta, found no such file"),
        (MultiMNIST(), r"expected \d+ bytes in .*train-images.*, got no such file\."),
        (NYUv2(), "795 files 0.npy to 794.npy in .*nyuv2/train/image, got 0 without 0.npy"),
        (Omniglot(), "964 characters under .*omniglot-py/images_background .*got 0"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_an_empty_folder_names_the_missing_file(
    source: Source, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMTL_DATA", str(tmp_path))
    with pytest.raises(UserError, match=says):
        source.load()


@pytest.mark.parametrize("source", [Digits(shots=3, queries=2), CLASSES])
def test_every_class_has_its_shots_and_queries(
    source: Digits, arrays: dict[str, np.ndarray]
) -> None:
    episodes = build(source, arrays)
    assert episodes.support.inputs.dtype == torch.uint8
    assert episodes.support.inputs.shape[2:] == source.input_shape
    for task in source.make_tasks():
        if task.kind.name == "classification":
            for batch, per_class in (
                (episodes.support, source.shots),
                (episodes.query, source.queries),
            ):
                counts = torch.stack(
                    [row.bincount(minlength=task.out_features) for row in batch.targets[task.name]]
                )
                assert torch.equal(counts, torch.full_like(counts, checked(per_class, int)))


def test_sums_are_right_and_standardised(arrays: dict[str, np.ndarray]) -> None:
    targets = build(Digits(), arrays, indices=range(200)).query.targets
    assert torch.equal(targets["sum"], targets["left"] + targets["right"])
    task = Digits(tasks=("sum",)).make_tasks()[0]
    standardised = task.loss(torch.zeros(targets["sum"].numel(), 1), targets["sum"].flatten())
    assert float(standardised.mean()) == pytest.approx(1.0, abs=0.05)


def test_splits_share_no_digits_angles_or_numbers(arrays: dict[str, np.ndarray]) -> None:
    members = [set(arrays[f"{split}_members"].flatten().tolist()) for split in SPLITS]
    angles = [set(Digits().angles(split)) for split in SPLITS]
    numbers = [set(arrays["numbers"][CLASS_SPLIT[split]].tolist()) for split in SPLITS]
    for parts in (members, angles, numbers):
        assert all(parts)
        assert not (parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2])
    assert set.union(*numbers) == set(range(100))


@pytest.mark.parametrize("source", [Digits(shots=3, queries=3), CLASSES])
def test_support_and_query_share_no_source_digit(
    source: Digits, arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[np.ndarray] = []

    def watch(glyphs: Any, left: Any, right: Any) -> Any:
        drawn.append(np.concatenate([left.reshape(20, -1), right.reshape(20, -1)], axis=1))
        return compose(glyphs, left, right)

    monkeypatch.setattr("raymtl.data.sources.digits.compose", watch)
    build(source, arrays, indices=range(20))
    support, query = drawn
    for of_support, of_query in zip(support.tolist(), query.tolist(), strict=True):
        assert of_support and of_query and not set(of_support) & set(of_query)


def test_quarter_turns_move_every_pixel(arrays: dict[str, np.ndarray]) -> None:
    upright = build(Digits(train_angles=(0,)), arrays).support.inputs[:1]
    for turns in range(4):
        turned = rotated(upright, torch.tensor([90.0 * turns]))
        assert torch.equal(turned, upright.rot90(turns, (-2, -1)))


def test_digits_lie_in_their_corners(arrays: dict[str, np.ndarray]) -> None:
    """Left at the top left, and right at the bottom right."""
    glyphs = np.zeros((2, 8, 8), np.uint8)
    glyphs[0], glyphs[1] = 100, 200
    picture = compose(glyphs, np.array([0]), np.array([1]))[0, 0]
    assert picture[2, 2] == 100
    assert picture[13, 13] == 200
    assert picture[8, 8] == 200
    assert picture[2, 13] == 0
    assert picture[13, 2] == 0


def test_pictures_become_floats_where_they_are_computed(arrays: dict[str, np.ndarray]) -> None:
    moved = on_device(build(Digits(), arrays), "cpu")
    assert moved.query.inputs.dtype == torch.float32
    assert float(moved.query.inputs.max()) <= 1.0
    assert moved.query.targets["left"].dtype == torch.int64


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"train_angles": (0, 30)}, "data.val_angles: .* got \\[30.0\\] in both"),
        ({"episodes": "classes", "ways": 17}, "data.ways: expected at most the 16 classes"),
        ({"tasks": ("left", "left")}, "data.tasks: expected every task once"),
    ],
)
def test_impossible_sources_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Digits(**values)


def test_supervised_episodes_keep_every_label(arrays: dict[str, np.ndarray]) -> None:
    source = Digits(shots=2, queries=3)
    plain, joint = build(source, arrays), build(source.as_supervised(), arrays)
    assert (
        joint.query.inputs.shape[1] == plain.query.inputs.shape[1] + plain.support.inputs.shape[1]
    )


def inputs_of(batch: Batch, task: str) -> torch.Tensor:
    """Those that all tasks share, or the task's own."""
    return batch.inputs if isinstance(batch.inputs, torch.Tensor) else batch.inputs[task]


@pytest.mark.parametrize("kind", SOURCES, ids=lambda kind: kind.model_fields["name"].default)
def test_every_source_keeps_its_contract(kind: type[Source], tmp_path: Path) -> None:
    of_folder: dict[type[Source], Callable[[Path], Source]] = {
        Files: own_table,
        NYUv2: small_rooms,
        Prepared: own_shards,
        VOC: small_cells,
    }
    if kind in of_folder:
        source = of_folder[kind](tmp_path)
    else:
        source = kind()
    encoder = "conv" if any(task.is_dense for task in source.make_tasks()) else "mlp"
    assert (
        Experiment.model_validate({"data": source.model_dump(), "encoder": {"name": encoder}}).data
        == source
    )
    names = source.task_names
    assert tuple(task.name for task in source.make_tasks()) == names
    assert source.select_tasks(names) == source
    if (
        kind.model_fields["name"].default in ("cifar100", "multimnist", "omniglot")
        and "RAYMTL_DATA" not in os.environ
    ):
        pytest.skip("needs CIFAR-100, MNIST and Omniglot in $RAYMTL_DATA")
    arrays = source.load()
    assert tuple(source.sizes(arrays)) == names
    assert all(size > 0 for size in source.sizes(arrays).values())
    assert [note for note in source.notes(arrays) if "populations" in note.text] == []
    plain, joint = build(source, arrays), build(source.as_supervised(), arrays)
    for name in names:
        sizes = [
            inputs_of(batch, name).shape[1] for batch in (joint.query, plain.query, plain.support)
        ]
        assert sizes[0] == sizes[1] + sizes[2]
    assert kind.model_validate(source.as_supervised().model_dump()) == source.as_supervised()
    for batch in (part for split in SPLITS for part in build(source, arrays, split)):
        assert tuple(batch.targets) == names
        for task in source.make_tasks():
            target, inputs = batch.targets[task.name], inputs_of(batch, task.name)
            assert inputs.shape[2:] == source.input_shape
            assert inputs.dtype == (torch.uint8 if source.is_image else torch.float32)
            assert target.shape[:2] == inputs.shape[:2]
            pairs = zip(target.shape[2:], task.target_shape, strict=True)
            assert all(
                size >= least if task.kind.name == "detection" else size == least
                for size, least in pairs
            )
            if task.kind.name == "classification":
                assert target.dtype == torch.int64
                assert int(target.min()) >= 0 and int(target.max()) < task.out_features


class WithoutPopulations(Digits):
    """A finite source whose author forgot what its examples were sampled from."""

    populations: ClassVar[Any] = Source.populations


def test_finite_sources_without_populations_are_noted(arrays: dict[str, np.ndarray]) -> None:
    """Their intervals are too narrow; computed episodes are each a new one."""
    forgotten = WithoutPopulations()
    (note,) = forgotten.notes(arrays)
    assert str(note).startswith(
        "source WithoutPopulations: its data are finite, but the class does not"
    )
    parts = Several.model_construct(parts={"one": Digits(), "two": forgotten})
    both = {f"{part}/{key}": array for part in parts.parts for key, array in arrays.items()}
    (of_part,) = parts.notes(both)
    assert of_part.place == "two: source WithoutPopulations"
    assert of_part.key == "data.parts.two.name"
    assert Sinusoid().notes(Sinusoid().load()) == ()


def test_a_source_is_chosen_by_its_name() -> None:
    with pytest.raises(
        UserError,
        match=r"^data.name: expected one of digits, .*got 'sinusoids'.*Did you mean sinusoid",
    ):
        parse({"data": {"name": "sinusoids"}})
    with pytest.raises(UserError, match=r"^data.shot: unknown key"):
        parse({"data": {"name": "sinusoid", "shot": 3}})
