"""Pictures with boxes in Pascal VOC's folders: labels, splits, flips, what is withheld, what is wrong; and real cells."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymtl.config import Experiment
from raymtl.data import SPLITS, VOC
from raymtl.data.episodes import build_episodes, on_device
from raymtl.data.formats.voc_folder import read_folder
from raymtl.data.formats.voc_xml import mirrored, read_xml
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import UserError
from tests.data.blood import COLOURS, SIDES, Object, write_voc, xml
from tests.narrowing import present, shared_inputs

ALL = ("boxes", "count", "present", "main")
CLASSES = ("disc", "square")
needs_data = pytest.mark.skipif(
    "RAYMTL_DATA" not in os.environ, reason="needs blood cells in $RAYMTL_DATA"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Object]]]:
    root = tmp_path_factory.mktemp("voc")
    return root, write_voc(root)


@pytest.fixture
def own(made: tuple[Path, dict[str, list[Object]]], tmp_path: Path) -> Path:
    """A copy that a test may change; VOC2007 itself."""
    shutil.copytree(made[0], tmp_path / "copy")
    return tmp_path / "copy" / "VOCdevkit" / "VOC2007"


def source(folder: Path, **values: Any) -> VOC:
    values = {"size": SIDES, "tasks": ALL, "flips": (), **values}
    return VOC(folder=str(folder), **values).resolve()


def of(own: Path, **values: Any) -> VOC:
    return source(own.parent.parent, **values)


def test_labels_are_those_of_the_objects(
    made: tuple[Path, dict[str, list[Object]]],
) -> None:
    root, written = made
    arrays = source(root, size=(18, 24)).load()
    assert sorted(arrays["names"]) == sorted(written)
    for row, name in enumerate(arrays["names"]):
        objects = written[name]
        boxes = arrays["target/boxes"][row]
        there = boxes[boxes[:, 0] >= 0]
        wanted = [[CLASSES.index(label), *(value / 2 for value in box)] for label, *box in objects]
        np.testing.assert_allclose(there, np.array(wanted).reshape(-1, 5))
        counts = [sum(label == name for label, *_ in objects) for name in CLASSES]
        np.testing.assert_array_equal(arrays["target/count"][row], counts)
        np.testing.assert_array_equal(arrays["target/present"][row], np.array(counts) > 0)
        areas = [
            sum((x2 - x1) ** 2 for label, x1, _, x2, _ in objects if label == name)
            for name in CLASSES
        ]
        assert arrays["mask/main"][row] == bool(objects)
        assert not objects or arrays["target/main"][row] == np.argmax(areas)
    assert arrays["mask/boxes"].all()  # a picture that shows nothing says so


def test_training_pictures_standardise_the_counts(
    made: tuple[Path, dict[str, list[Object]]],
) -> None:
    root, written = made
    numbers = np.array(
        [[sum(o[0] == name for o in written[f"p{i:03d}"]) for name in CLASSES] for i in range(24)]
    )
    found = present(source(root).found)
    np.testing.assert_allclose(found.means, numbers.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.stds, numbers.std(0), rtol=1e-6)


def test_boxes_lie_on_their_objects(
    made: tuple[Path, dict[str, list[Object]]],
) -> None:
    """An episode has the pictures of its split."""
    voc = source(made[0], shots=2, queries=6, flips=("horizontal", "vertical"))
    arrays = voc.load()
    pool = {
        split: {arrays["pictures"][row].tobytes() for row in arrays[f"rows/{split}"]}
        for split in SPLITS
    }
    turned = 0
    for split in SPLITS:
        (stack,), domains = build_episodes(
            voc, arrays, seed=0, split=split, step=0, indices=range(10)
        )
        assert shared_inputs(stack.support).shape == (10, 2, 3, *SIDES) and set(domains) == {
            "VOC2007"
        }
        for picture, boxes in zip(
            shared_inputs(stack.query).flatten(0, 1),
            stack.query.targets["boxes"].flatten(0, 1),
            strict=True,
        ):
            if split != "train":
                assert picture.numpy().tobytes() in pool[split]
            else:
                turned += picture.numpy().tobytes() not in pool[split]
            last = boxes[boxes[:, 0] >= 0][-1:]  # nothing is drawn over it
            for label, x1, y1, x2, y2 in last.tolist():
                middle = picture[:, int((y1 + y2) / 2), int((x1 + x2) / 2)]
                assert tuple(middle.tolist()) == COLOURS[CLASSES[int(label)]]
                for x, y in ((x1 - 0.5, (y1 + y2) / 2), ((x1 + x2) / 2, y2 + 0.5)):
                    if 0 < x < SIDES[1] and 0 < y < SIDES[0]:
                        beyond = tuple(picture[:, int(y), int(x)].tolist())
                        assert (
                            beyond != COLOURS[CLASSES[int(label)]]
                            or len(boxes[boxes[:, 0] >= 0]) > 1
                        )
    assert 25 < turned < 60  # three of four are turned one way or the other


@pytest.mark.parametrize("across", [True, False])
def test_boxes_mirrored_twice_are_themselves(across: bool) -> None:
    """Rows of no box stay."""
    boxes = np.array([[0, 1, 2, 5, 9], [-1, -1, -1, -1, -1], [-3, 4, 0, 8, 3]], np.float32)
    once = mirrored(boxes, (10, 20), across=across)
    np.testing.assert_array_equal(mirrored(once, (10, 20), across=across), boxes)
    np.testing.assert_array_equal(once[1], boxes[1])
    np.testing.assert_array_equal(once[0], [0, 15, 2, 19, 9] if across else [0, 1, 1, 5, 8])


def test_episodes_depend_on_their_index_alone(
    made: tuple[Path, dict[str, list[Object]]],
) -> None:
    """An episode is a function of seed, split, step and index."""
    voc = source(made[0], flips=("horizontal",))
    arrays = voc.load()
    (whole,), _ = build_episodes(voc, arrays, seed=0, split="train", step=3, indices=range(4))
    (alone,), _ = build_episodes(voc, arrays, seed=0, split="train", step=3, indices=[2])
    assert torch.equal(shared_inputs(whole.query)[2], shared_inputs(alone.query)[0])
    (other,), _ = build_episodes(voc, arrays, seed=0, split="train", step=4, indices=[2])
    assert not torch.equal(shared_inputs(other.query), shared_inputs(alone.query))


def test_boxes_are_withheld_in_training_alone(
    made: tuple[Path, dict[str, list[Object]]],
) -> None:
    """Those of a share of the pictures."""
    voc = source(made[0], unboxed=0.25)
    arrays = voc.load()
    for split, size in zip(SPLITS, (24, 8, 8), strict=True):
        rows = arrays[f"rows/{split}"]
        assert len(rows) == size and arrays["mask/count"][rows].all()
        assert (~arrays["mask/boxes"][rows]).sum() == (6 if split == "train" else 0)
    assert voc.sizes(arrays)["boxes"] == 18 and voc.sizes(arrays)["count"] == 24
    other = source(made[0], unboxed=0.25, split_seed=1).load()
    assert not np.array_equal(arrays["mask/boxes"], other["mask/boxes"])


def test_pictures_without_boxes_train_the_other_tasks_only(
    made: tuple[Path, dict[str, list[Object]]],
) -> None:
    chosen = Experiment.model_validate(
        {
            "data": {
                "name": "voc",
                "folder": str(made[0]),
                "size": SIDES,
                "tasks": ("boxes", "count"),
                "unboxed": 0.5,
            },
            "encoder": {"name": "conv", "channels": [4, 4]},
            "learner": {"name": "maml", "inner_steps": 0},
        }
    ).resolve()
    arrays = chosen.data.load()
    (stack,), _ = build_episodes(chosen.data, arrays, seed=0, split="train", step=0, indices=[0])
    hidden = ~stack.query.masks["boxes"]
    assert 0 < hidden.sum() < hidden.numel()
    moved = {**stack.query.targets, "boxes": stack.query.targets["boxes"].clone()}
    moved["boxes"][hidden] = 7.0
    algorithm = chosen.build()

    def gradients(targets: Any) -> tuple[Any, ...]:
        episodes = on_device(stack._replace(query=stack.query._replace(targets=targets)), "cpu")
        found = meta_gradient(algorithm, algorithm.init_params(), episodes)
        return found.losses, tuple(found.grads.values())

    (losses, one), (same, other) = gradients(stack.query.targets), gradients(moved)
    assert losses.isfinite().all() and torch.equal(losses, same)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_unannotated_pictures_follow_the_class_lists(own: Path) -> None:
    for number in (0, 1, 2):
        (own / "Annotations" / f"p{number:03d}.xml").unlink()
    for name, values in {"disc": (1, -1), "square": (0, -1)}.items():
        lines = "".join(f"p{number:03d} {value:2d}\n" for number, value in enumerate(values))
        (own / "ImageSets" / "Main" / f"{name}_train.txt").write_text(lines)
    arrays = of(own).load()
    row = {name: number for number, name in enumerate(arrays["names"])}
    np.testing.assert_array_equal(arrays["target/present"][row["p000"]], [1, np.nan])
    np.testing.assert_array_equal(arrays["target/present"][row["p001"]], [0, 0])
    for name in ("p000", "p001"):
        assert arrays["mask/present"][row[name]] and not arrays["mask/boxes"][row[name]]
        assert not arrays["mask/count"][row[name]] and not arrays["mask/main"][row[name]]
    assert {row["p000"], row["p001"]} < set(arrays["rows/train"]) and row["p002"] not in arrays[
        "rows/train"
    ]
    assert len(of(own, tasks=("boxes", "count")).load()["rows/train"]) == 21


def test_difficult_objects_are_ignored(own: Path) -> None:
    """Unless they are taken for objects."""
    objects = [("disc", 2, 2, 10, 10), ("square", 20, 4, 40, 30)]
    (own / "Annotations" / "p000.xml").write_text(xml(objects, difficult=[1]))
    row = 0
    ignored, as_others = (of(own, difficult=how).load() for how in ("ignored", "objects"))
    assert ignored["names"][row] == "p000"
    assert ignored["target/boxes"][row, :2, 0].tolist() == [0, -3]
    assert as_others["target/boxes"][row, :2, 0].tolist() == [0, 1]
    assert ignored["target/count"][row].tolist() == [1, 0] and as_others["target/count"][
        row
    ].tolist() == [1, 1]
    np.testing.assert_array_equal(ignored["target/present"][row], [1, np.nan])
    assert (ignored["target/main"][row], as_others["target/main"][row]) == (0, 1)


@pytest.mark.parametrize(
    ("kept", "sizes"),
    [
        (("train", "val", "test"), (24, 8, 8)),
        (("train", "test"), (20, 4, 8)),
        (("val", "test"), (24, 8, 8)),
        ((), (28, 6, 6)),
    ],
)
def test_unlisted_splits_come_from_training(
    own: Path, kept: tuple[str, ...], sizes: tuple[int, ...]
) -> None:
    for split in SPLITS:
        if split not in kept:
            (own / "ImageSets" / "Main" / f"{split}.txt").unlink()
    arrays = of(own).load()
    rows = [arrays[f"rows/{split}"] for split in SPLITS]
    assert tuple(len(part) for part in rows) == sizes
    assert len(set(np.concatenate(rows))) == sum(sizes)
    again = of(own).load()
    other = of(own, split_seed=1).load()
    assert np.array_equal(arrays["names"], again["names"])
    assert np.array_equal(arrays["names"], other["names"]) == (
        len(kept) == 3 or kept == ("val", "test")
    )


def test_findings_need_no_folder_any_more(own: Path) -> None:
    voc = of(own)
    content = voc.model_dump(mode="json")
    shutil.rmtree(own)
    read_folder.cache_clear()
    again = VOC.model_validate(content).resolve()
    assert again == voc and [task.name for task in again.make_tasks()] == list(ALL)
    with pytest.raises(UserError, match=r"data.folder: expected the folder"):
        VOC.model_validate({**content, "split_seed": 5}).resolve()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (xml([("disc", 4, 4, 4, 9)]), "'disc' has no area: x 4 to 4, y 4 to 9"),
        (xml([("disc", 4, 4, 60, 9)]), "'disc' reaches out of the picture of 48 x 36: x 4 to 60"),
        (
            xml([("disc", 4, 4, 9, 9)], size=(100, 100)),
            "it is of a picture of 100 x 100, got one of 48 x 36",
        ),
        ("<annotation><object>", "no XML"),
        ("<html></html>", "<html> in place of <annotation>"),
        (
            xml([("disc", 4, 4, 9, 9)]).replace("<xmin>4<", "<xmin>four<"),
            "expected a number in <xmin>, got 'four'",
        ),
        (
            "<annotation><object><name>disc</name></object></annotation>",
            "object 0, 'disc', has no bndbox",
        ),
        (xml([("", 1, 1, 9, 9)]), "object 0 has no name"),
    ],
)
def test_faults_are_counted_and_named(own: Path, content: str, says: str) -> None:
    """Above a share of the pictures they are refused."""
    (own / "Annotations" / "p003.xml").write_text(content)
    with pytest.raises(
        UserError, match=r"data.max_corrupt: 1 of 40 pictures have faults: .*over 1.0%"
    ) as told:
        of(own).load()
    assert f"Annotations/p003.xml: {says}" in str(told.value)
    arrays = of(own, max_corrupt=0.03).load()
    assert "1 of 40 pictures have faults" in str(of(own).notes(arrays))
    assert not (arrays["target/boxes"][3, :, 0] == 0).any()


def test_unreadable_and_missing_pictures_are_named(own: Path) -> None:
    whole = (own / "JPEGImages" / "p004.png").read_bytes()
    (own / "JPEGImages" / "p004.png").write_bytes(whole[:300])
    (own / "JPEGImages" / "p005.png").unlink()
    with pytest.raises(
        UserError, match=r"2 of 40 pictures have faults: .*p004.png: .*p005: no such picture"
    ):
        of(own).load()
    arrays = of(own, max_corrupt=0.1).load()
    assert "2 of 40 pictures have faults" in str(of(own).notes(arrays))
    assert not {4, 5} & set(arrays["rows/train"])


def test_entities_are_never_expanded() -> None:
    bomb = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]>' + xml([("&y;", 1, 1, 9, 9)])
    with pytest.raises(ValueError, match="DOCTYPE"):
        read_xml(bomb.encode())
    with pytest.raises(ValueError, match="no XML: undefined entity"):
        read_xml(xml([("&y;", 1, 1, 9, 9)]).encode())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"classes": ("disc",)},
            r"Annotations/p\d+.xml: expected an object of \['disc'\], got 'square'",
        ),
        ({"classes": ("disc", "disc")}, "data.classes: expected every class once"),
        ({"tasks": ("boxes", "boxes")}, "data.tasks: expected every task once"),
        ({"year": "2012"}, "data.folder: expected the folder .*VOC2012/JPEGImages, got none"),
    ],
)
def test_impossible_sources_are_refused(
    made: tuple[Path, dict[str, list[Object]]], values: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        source(made[0], **values)


def test_a_picture_on_two_sides_is_refused(own: Path) -> None:
    with (own / "ImageSets" / "Main" / "test.txt").open("a") as file:
        file.write("p000\n")
    with pytest.raises(
        UserError,
        match=r"Main/test.txt: expected pictures of no other split, got 'p000', which is in train",
    ):
        of(own)


@needs_data
def test_real_blood_cells_are_complete() -> None:
    """Their two boxes without area are told."""
    voc = VOC(size=(48, 64), tasks=ALL).resolve()
    assert present(voc.found).classes == ("Platelets", "RBC", "WBC")
    arrays = voc.load()
    (note,) = voc.notes(arrays)
    assert (
        note.text.startswith("2 of 364 pictures have faults: ") and "'RBC' has no area" in note.text
    )
    assert [len(arrays[f"rows/{split}"]) for split in SPLITS] == [205, 87, 72]
    assert arrays["target/count"].sum(0).tolist() == [361, 4153, 372]
    white = arrays["target/boxes"][arrays["target/boxes"][..., 0] == 2]
    red = arrays["target/boxes"][arrays["target/boxes"][..., 0] == 1]
    assert np.median(white[:, 3] - white[:, 1]) > 1.5 * np.median(red[:, 3] - red[:, 1])
