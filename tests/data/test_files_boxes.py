"""Boxes of the user's own pictures: XML, JSON of COCO and tables say the same, and what is wrong with them is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raymtl.config import Experiment
from raymtl.data import SPLITS, VOC, Files
from raymtl.data.batch_picture import draw_batch
from raymtl.data.episodes import build_episodes, on_device
from raymtl.data.inspection import inspect
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import UserError
from tests.data.blood import SIDES, Object, write_voc, xml
from tests.data.own import write_csv

Written = dict[str, list[Object]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    root = tmp_path_factory.mktemp("boxes")
    return root / "VOCdevkit" / "VOC2007", write_voc(root)


@pytest.fixture
def own(made: tuple[Path, Written], tmp_path: Path) -> tuple[Path, Written]:
    """A copy that a test may change."""
    shutil.copytree(made[0], tmp_path / "own")
    return tmp_path / "own", made[1]


def coco(written: Written, names: list[str]) -> dict[str, Any]:
    """COCO's instances; identities are neither dense nor in order."""
    categories = [{"id": 7, "name": "square"}, {"id": 3, "name": "disc"}]
    number = {"square": 7, "disc": 3}
    images = [
        {"id": 900 - i, "file_name": f"{name}.png", "width": 1, "height": 1}
        for i, name in enumerate(names)
    ]
    annotations = [
        {
            "image_id": 900 - i,
            "category_id": number[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": 0,
        }
        for i, name in enumerate(names)
        for label, x1, y1, x2, y2 in written[name]
    ]
    return {"categories": categories, "images": images, "annotations": annotations}


def rows(written: Written, names: list[str]) -> dict[str, list[Any]]:
    """A row a box; one with the picture alone where it shows nothing."""
    found: list[list[Any]] = []
    for name in names:
        found += [[f"{name}.png", *one] for one in written[name]]
        if not written[name]:
            found.append([f"{name}.png", *[None] * 5])
    return dict(
        zip(
            ("picture", "class", "x1", "y1", "x2", "y2"),
            map(list, zip(*found, strict=True)),
            strict=True,
        )
    )


def source(folder: Path, task: dict[str, Any], **values: Any) -> Files:
    return Files(
        path=str(folder / "JPEGImages"), tasks={"things": task}, **{"size": SIDES, **values}
    ).resolve()


def test_xml_json_and_tables_say_the_same(made: tuple[Path, Written], tmp_path: Path) -> None:
    folder, written = made
    names = list(written)
    (tmp_path / "boxes.json").write_text(json.dumps(coco(written, names)))
    write_csv(tmp_path / "boxes.csv", rows(written, names))
    classes = ["disc", "square"]
    sources = [
        source(folder, {"path": str(folder / "Annotations")}),
        source(folder, {"path": str(tmp_path / "boxes.json"), "classes": classes}),
        source(folder, {"path": str(tmp_path / "boxes.csv"), "kind": "detection"}),
    ]
    loaded = [one.load() for one in sources]
    for one, arrays in zip(sources, loaded, strict=True):
        assert one.found.tasks["things"].classes == tuple(classes)
        assert arrays["mask/things"].all()
        np.testing.assert_array_equal(arrays["target/things"], loaded[0]["target/things"])
    for boxes, name in zip(loaded[0]["target/things"], names, strict=True):
        wanted = [[classes.index(label), *corners] for label, *corners in written[name]]
        np.testing.assert_allclose(boxes[boxes[:, 0] >= 0], np.array(wanted).reshape(-1, 5))
        assert (boxes[len(wanted) :, 0] == -1).all()
    assert source(folder, {"path": str(tmp_path / "boxes.json")}).found.tasks["things"].classes == (
        "square",
        "disc",
    )


def test_voc_folders_equal_the_voc_source(made: tuple[Path, Written]) -> None:
    folder, written = made
    arrays = source(folder, {"path": str(folder / "Annotations")}, size=(18, 24)).load()
    voc = VOC(folder=str(folder.parent.parent), size=(18, 24), flips=()).resolve().load()
    order = np.argsort(voc["names"])
    assert voc["names"][order].tolist() == sorted(written)
    np.testing.assert_array_equal(arrays["target/things"], voc["target/boxes"][order])
    np.testing.assert_array_equal(arrays["inputs"], voc["pictures"][order])


def test_unannotated_pictures_are_masked(made: tuple[Path, Written], tmp_path: Path) -> None:
    """They train the other tasks."""
    folder, written = made
    names = list(written)
    (tmp_path / "boxes.json").write_text(json.dumps(coco(written, names[:30])))
    write_csv(
        tmp_path / "labels.csv",
        {"picture": [f"{n}.png" for n in names], "many": [len(written[n]) for n in names]},
    )
    for name in names:
        shutil.copy(folder / "JPEGImages" / f"{name}.png", tmp_path)
    tasks = {
        "things": {"path": str(tmp_path / "boxes.json"), "stride": 4},
        "many": {"kind": "regression"},
    }
    chosen = Experiment.model_validate(
        {
            "data": {"name": "files", "path": str(tmp_path), "size": SIDES, "tasks": tasks},
            "encoder": {"name": "conv", "channels": [4, 4]},
            "learner": {"name": "maml", "inner_steps": 0},
        }
    ).resolve()
    arrays = chosen.data.load()
    assert (
        arrays["mask/things"].tolist() == [True] * 30 + [False] * 10 and arrays["mask/many"].all()
    )
    shown = (arrays["target/things"][..., 0] >= 0).sum(1)
    np.testing.assert_array_equal(shown[:30], arrays["target/many"][:30])
    assert (shown[:30] == 0).any()  # some show nothing, which is a label
    assert sum(len(arrays[f"rows/{split}"]) for split in SPLITS) == 40
    built, _ = build_episodes(chosen.data, arrays, seed=0, split="train", step=0, indices=[0])
    algorithm = chosen.build()
    assert (
        meta_gradient(algorithm, algorithm.init_params(), on_device(built, "cpu"))
        .losses.isfinite()
        .all()
    )


def test_cropping_moves_the_boxes_with_the_picture(made: tuple[Path, Written]) -> None:
    folder, written = made
    arrays = source(
        folder, {"path": str(folder / "Annotations")}, size=36, resize="crop"
    ).load()  # the middle 36 of 48
    for boxes, name in zip(arrays["target/things"], written, strict=True):
        wanted = []
        for label, x1, y1, x2, y2 in written[name]:
            left, right = max(x1 - 6, 0), min(x2 - 6, 36)
            if right > left:
                wanted.append([label == "square", left, y1, right, y2])
        np.testing.assert_allclose(
            boxes[boxes[:, 0] >= 0], np.array(wanted, float).reshape(-1, 5), atol=1e-5
        )


def test_crowds_and_difficult_objects_are_ignored(
    own: tuple[Path, Written], tmp_path: Path
) -> None:
    """Those of COCO and those of VOC."""
    folder, written = own
    content = coco(written, list(written))
    content["annotations"][0]["iscrowd"] = 1
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    found = source(
        folder, {"path": str(tmp_path / "boxes.json"), "classes": ["disc", "square"]}
    ).load()
    first = next(i for i, name in enumerate(written) if written[name])
    name = list(written)[first]
    assert found["target/things"][first, 0, 0] == -2 - (written[name][0][0] == "square")
    (folder / "Annotations" / f"{name}.xml").write_text(xml(written[name], difficult=[0]))
    as_voc = source(folder, {"path": str(folder / "Annotations")}).load()
    np.testing.assert_array_equal(as_voc["target/things"], found["target/things"])


def test_annotations_are_found_by_path_or_name(own: tuple[Path, Written], tmp_path: Path) -> None:
    """Or by the name without its ending."""
    folder, written = own
    names = list(written)
    for part, some in (("a", names[:20]), ("b", names[20:])):
        (tmp_path / "p" / part).mkdir(parents=True)
        for name in some:
            shutil.move(
                folder / "JPEGImages" / f"{name}.png", tmp_path / "p" / part / f"{name}.png"
            )
    content = rows(written, names)
    content["picture"] = [name.removesuffix(".png") for name in content["picture"]]
    write_csv(tmp_path / "boxes.csv", content)
    task = {"path": str(tmp_path / "boxes.csv"), "kind": "detection"}
    arrays = Files(path=str(tmp_path / "p"), size=SIDES, tasks={"things": task}).resolve().load()
    assert arrays["mask/things"].all()
    # Of two pictures of one name the path alone tells which is meant.
    shutil.copy(tmp_path / "p" / "a" / "p001.png", tmp_path / "p" / "b" / "p001.png")
    source = Files(
        path=str(tmp_path / "p"), size=SIDES, tasks={"things": task}, max_corrupt=0.1
    ).resolve()
    assert (~source.load()["mask/things"]).sum() == 2
    content["picture"] = [
        f"a/{name}.png" if name == "p001" else name for name in content["picture"]
    ]
    write_csv(tmp_path / "boxes.csv", content)
    assert (
        ~Files(path=str(tmp_path / "p"), size=SIDES, tasks={"things": task})
        .resolve()
        .load()["mask/things"]
    ).sum() == 1


def test_columns_of_a_table_may_have_any_names(made: tuple[Path, Written], tmp_path: Path) -> None:
    folder, written = made
    names = ["bild", "art", "links", "oben", "rechts", "unten"]
    write_csv(
        tmp_path / "b.csv", dict(zip(names, rows(written, list(written)).values(), strict=True))
    )
    task = {"path": str(tmp_path / "b.csv"), "kind": "detection", "columns": names}
    assert source(folder, task).load()["mask/things"].all()
    with pytest.raises(
        UserError,
        match=r"b.csv: expected the column 'picture', got \['bild', .*data.tasks.things.columns",
    ):
        source(folder, {"path": str(tmp_path / "b.csv"), "kind": "detection"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bbox": [1, 2, 3]}, r"expected bbox: \[x, y, width, height\], got \[1, 2, 3\]"),
        ({"image_id": 5}, "annotation 0: expected image_id of one of the 40 in the file, got 5"),
        (
            {"category_id": None},
            "annotation 0: expected category_id of one of the 2 in the file, got None",
        ),
    ],
)
def test_broken_coco_is_told_with_its_annotation(
    made: tuple[Path, Written], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    content = coco(made[1], list(made[1]))
    content["annotations"][0] |= change
    (tmp_path / "b.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=says):
        source(made[0], {"path": str(tmp_path / "b.json")})


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"kind": "detection"}, r"data.tasks.things.path: expected where the boxes are"),
        ({"path": "ANNOTATIONS", "classes": ["disc", "star"]}, r"p\d+.xml: expected an object of task 'things', .*'square'"),
        ({"path": "ANNOTATIONS", "loss": "huber"}, r"data.tasks.things.loss: expected none of kind detection"),
        ({"path": "OTHERS"}, r"expected annotations of the \d+ pictures for training, got those of others, such as 'other'"),
        ({"path": "JSON"}, r"b.json: expected JSON as of COCO, with images, annotations and categories.*'images'"),
        ({"path": "TABLE", "kind": "detection"}, r"b.csv: row 0: expected a class and four finite numbers, got 'disc'"),
        ({"path": "EMPTY", "kind": "detection"}, r"expected a folder of XML as of Pascal VOC, JSON as of COCO, or a table"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(
    made: tuple[Path, Written], tmp_path: Path, task: dict[str, Any], says: str
) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "other.xml").write_text(xml([("disc", 1, 1, 9, 9)]))
    (tmp_path / "b.json").write_text('{"categories": []}')
    write_csv(
        tmp_path / "b.csv",
        {"picture": ["p000.png"], "class": ["disc"], "x1": [1], "y1": [1], "x2": [9], "y2": [None]},
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    paths = {
        "ANNOTATIONS": made[0] / "Annotations",
        "OTHERS": tmp_path / "others",
        "JSON": tmp_path / "b.json",
        "TABLE": tmp_path / "b.csv",
        "EMPTY": tmp_path / "empty",
    }
    if "path" in task:
        task = {**task, "path": str(paths[task["path"]])}
    with pytest.raises(UserError, match=says):
        source(made[0], task)


def test_faulty_boxes_are_counted_and_omitted(
    own: tuple[Path, Written],
) -> None:
    """They are named; so are faulty annotations."""
    folder, _ = own
    (folder / "Annotations" / "p001.xml").write_text(
        xml([("disc", 3, 3, 3, 9), ("disc", 3, 3, 9, 9)])
    )
    (folder / "Annotations" / "p002.xml").write_text("<!DOCTYPE x><annotation/>")
    task = {"path": str(folder / "Annotations")}
    with pytest.raises(
        UserError, match=r"2 of 40 .*p001.xml: 'disc' has no area: x 3 to 3.*p002.xml: a DOCTYPE"
    ):
        source(folder, task).load()
    arrays = source(folder, task, max_corrupt=0.1).load()
    assert "2 of 40" in str(source(folder, task, max_corrupt=0.1).notes(arrays))
    assert arrays["target/things"][1, :2, 0].tolist() == [0, -1]
    assert not arrays["mask/things"][2] and arrays["mask/things"].sum() == 39


def test_inspection_counts_and_draws_boxes(made: tuple[Path, Written], tmp_path: Path) -> None:
    folder, written = made
    files = source(folder, {"path": str(folder / "Annotations")}, size=(96, 96))
    told, arrays = inspect(files, 0)
    assert told["tasks"]["things"]["kind"] == "detection"
    for label in ("disc", "square"):
        counted = sum(part["balance"][label] for part in told["tasks"]["things"]["splits"].values())
        assert counted == sum(own[0] == label for objects in written.values() for own in objects)

    whole = {**arrays, "target/things": arrays["target/things"].copy()}
    whole["target/things"][..., 1:] = 90  # as many of each, in another place
    shown = []
    for number, given in enumerate((arrays, whole)):
        draw_batch(files, given, 0, tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as picture:
            shown.append(np.asarray(picture, int))
    changed = (shown[0] != shown[1]).any(-1)
    assert 200 < changed.sum() < 0.2 * changed.size
