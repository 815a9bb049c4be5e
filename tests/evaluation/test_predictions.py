"""predictions.parquet: what is printed follows from it, and a person can read it beside the files."""

import csv
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk

from raymtl.adaptation.adapt import adapt_run
from raymtl.adaptation.request import AdaptationRequest
from raymtl.data.formats.voc_xml import Seen, rows_of
from raymtl.data.tables.pictures import fitted_into
from raymtl.evaluation.image_resize import ImageResize, box_in_original, map_in_original
from raymtl.types import UserError
from tests.adaptation.test_new_rows import flats, trained
from tests.cli.test_cli import answer, mistake
from tests.data.own import write_csv, write_scenes

EXACT = 1e-15
TASKS: dict[str, dict[str, Any]] = {
    "rent": {},
    "state": {"classes": ["poor", "fair", "good"]},
    "has": {"kind": "multilabel"},
    "large": {},
}


def rooms(rows: int, seed: int) -> dict[str, list[Any]]:
    """Flats with a key, whether they are large, and now and then no label."""
    content = flats(rows, seed)
    rng = np.random.default_rng(seed)
    content["id"] = [f"flat {seed}/{i}" for i in rng.permutation(rows)]
    content["large"] = [int(size + rng.normal(0, 15) > 60) for size in content["size (m2)"]]
    for name in TASKS:
        content[name] = [None if rng.random() < 0.1 else value for value in content[name]]
    return content


def read(told: dict[str, Any]) -> pd.DataFrame:
    return pq.read_table(Path(told["folder"]) / "predictions.parquet").to_pandas()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rooms")
    write_csv(root / "rooms.csv", rooms(150, 0))
    split = {"key": "id"}
    trained(
        root / "run",
        {"path": str(root / "rooms.csv"), "tasks": TASKS, "split": split},
        steps=30,
        inner=2,
    )
    write_csv(root / "support.csv", rooms(30, 1))
    write_csv(root / "query.csv", rooms(60, 2))
    return root


def test_what_is_printed_follows_from_the_predictions(home: Path) -> None:
    """By scikit-learn, task by task, on the rows that have a label."""
    told = adapt_run(
        AdaptationRequest(home / "run", home / "support.csv", home / "query.csv", name="all")
    )
    found, scores = read(told), {name: after for name, (_, after) in told["scores"].items()}
    rent = found.dropna(subset="rent.target")
    assert scores["rent.mae"] == pytest.approx(
        sk.mean_absolute_error(rent["rent.target"], rent["rent.after"]), rel=1e-4
    )
    mse = sk.mean_squared_error(rent["rent.target"], rent["rent.after"])
    assert scores["rent.rmse"] == pytest.approx(mse**0.5, rel=1e-4)
    state = found.dropna(subset="state.target")
    assert scores["state.accuracy"] == pytest.approx(
        (state["state.target"] == state["state.after"]).mean()
    )
    likely = state[[f"state.probability.{name}" for name in TASKS["state"]["classes"]]].to_numpy()
    np.testing.assert_allclose(likely.sum(1), 1)
    classes = np.array(TASKS["state"]["classes"])
    assert (classes[likely.argmax(1)] == state["state.after"]).all()
    np.testing.assert_allclose(likely.max(1), state["state.probability"])
    large = found.dropna(subset="large.target")
    assert set(large["large.target"]) == {"0", "1"}
    assert scores["large.accuracy"] == pytest.approx(
        (large["large.target"] == large["large.after"]).mean()
    )
    area = sk.roc_auc_score(large["large.target"] == "1", large["large.probability.1"])
    assert scores["large.auroc"] == pytest.approx(area, abs=0.02)  # which is of bins
    known = found.dropna(subset="has.target")
    truth, likely = (
        np.stack([known[f"has.{what}.{label}"].to_numpy(float) for label in ("garden", "lift")], 1)
        for what in ("target", "probability")
    )
    assert scores["has.f1"] == pytest.approx(sk.f1_score(truth, likely > 0.5, average="macro"))
    assert scores["has.auroc"] == pytest.approx(sk.roc_auc_score(truth, likely), abs=0.02)
    for labels, row in zip(known["has.target"], truth, strict=True):
        assert list(labels) == [
            name for name, there in zip(("garden", "lift"), row, strict=True) if there
        ]


def test_predictions_name_key_and_row(home: Path) -> None:
    told = adapt_run(
        AdaptationRequest(home / "run", home / "support.csv", home / "query.csv", name="keyed")
    )
    found, content = read(told), rooms(60, 2)
    assert found["id"].tolist() == content["id"] and found["row"].tolist() == list(range(60))
    own = [value for value in content["rent"] if value is not None]
    assert found["rent.target"].dropna().tolist() == pytest.approx(own, rel=EXACT)
    unlabelled = rooms(30, 3)
    for name in TASKS:
        unlabelled[name] = [
            None if i % 3 == 0 else value for i, value in enumerate(unlabelled[name])
        ]
    some = read(
        adapt_run(AdaptationRequest(home / "run", write_csv(home / "some.csv", unlabelled)))
    )
    assert set(range(0, 30, 3)) <= set(some["row"]) and len(some) < 15
    assert some["id"].tolist() == [unlabelled["id"][row] for row in some["row"]]


def test_held_out_rows_are_named_too(home: Path) -> None:
    found, content = read(adapt_run(AdaptationRequest(home / "run", episode=3))), rooms(150, 0)
    assert len(found) == 4 and found["id"].tolist() == [content["id"][row] for row in found["row"]]
    for name in ("rent", "state"):
        own = {row: content[name][row] for row in found["row"] if content[name][row] is not None}
        told = {
            row: value
            for row, value in zip(found["row"], found[f"{name}.target"], strict=True)
            if not pd.isna(value)
        }
        assert told == (pytest.approx(own, rel=EXACT) if name == "rent" else own)


def test_written_predictions_have_the_printed_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of every held-out row."""
    write_csv(tmp_path / "rooms.csv", rooms(400, 0))
    data = {"path": str(tmp_path / "rooms.csv"), "tasks": TASKS, "split": {"key": "id"}}
    run = trained(tmp_path / "run", data, steps=20, inner=0)
    for split in ("test", "val"):
        file = tmp_path / f"{split}.parquet"
        words = ("evaluate", str(run), "--split", split, "--predictions", str(file), "--json")
        scores = json.loads(answer(monkeypatch, capsys, *words))["tasks"]
        found, content = pd.read_parquet(file), rooms(400, 0)
        assert len(found) == 60 and found["id"].tolist() == [
            content["id"][row] for row in found["row"]
        ]
        state = found.dropna(subset="state.target")
        mean = (state["state.target"] == state["state.after"]).mean()
        assert scores["state"]["accuracy"]["after"]["mean"] == pytest.approx(mean)
        rent = found.dropna(subset="rent.target")
        r2 = sk.r2_score(rent["rent.target"], rent["rent.after"])
        assert scores["rent"]["r2"]["after"]["mean"] == pytest.approx(r2, abs=1e-4)
        large = found.dropna(subset="large.target")
        area = sk.roc_auc_score(large["large.target"] == "1", large["large.probability.1"])
        assert scores["large"]["auroc"]["after"]["mean"] == pytest.approx(area, abs=0.01)
    adapting = trained(tmp_path / "adapting", data, inner=1)
    message = mistake(monkeypatch, capsys, "evaluate", str(adapting), "--predictions", str(file))
    assert "--predictions: expected a model that does not adapt" in message


def test_labels_of_a_query_score_a_transfer(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    support, query = rooms(40, 5), rooms(50, 6)
    for content in (support, query):
        content["fits"] = ["yes" if size > 60 else "no" for size in content["size (m2)"]]
    query["fits"][3] = None
    files = [
        write_csv(home / f"{name}-fits.csv", c)
        for name, c in (("support", support), ("query", query))
    ]

    def carried(*args: str) -> dict[str, Any]:
        words = (
            "--support",
            str(files[0]),
            "--transfer",
            "model",
            "--set",
            "task.name=fits",
            *args,
        )
        rows: dict[str, Any] = json.loads(
            answer(monkeypatch, capsys, "adapt", str(home / "run"), "--json", *words)
        )
        return rows

    told = carried("--query", str(files[1]))
    found = read(told)
    assert found["id"].tolist() == query["id"] and found["fits.target"].isna().sum() == 1
    known = found.dropna(subset="fits.target")
    hits = known["fits.target"] == known["fits.after"]
    assert told["test"]["after"]["accuracy"]["mean"] == pytest.approx(hits.mean())
    likely = known[["fits.probability.no", "fits.probability.yes"]].to_numpy()
    loss = sk.log_loss(known["fits.target"], likely, labels=["no", "yes"])
    assert told["test"]["after"]["loss"]["mean"] == pytest.approx(loss, rel=1e-4)
    bare = {name: values for name, values in query.items() if name != "fits"}
    assert carried("--query", str(write_csv(home / "bare.csv", bare)))["test"] is None
    query["fits"][7] = "perhaps"
    write_csv(files[1], query)
    message = mistake(
        monkeypatch, capsys, "adapt", str(home / "run"), "--support", str(files[0]), "--query", str(files[1]),
        "--transfer", "model", "--set", "task.name=fits",
    )  # fmt: skip
    assert (
        "row 7, column 'fits': expected one of the classes ['no', 'yes'], got 'perhaps'" in message
    )


def test_binary_tasks_transfer_as_two_classes(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--support", str(home / "support.csv"), "--query", str(home / "query.csv"), "--json")
    plain = read(
        adapt_run(
            AdaptationRequest(home / "run", home / "support.csv", home / "query.csv", name="plain")
        )
    )
    sets = ("--set", "task.name=large", "--set", "optimiser.steps=20")
    for way in ("model", "target"):
        student = ("--set", "student.name=mlp") if way == "target" else ()
        told = json.loads(
            answer(
                monkeypatch,
                capsys,
                "adapt",
                str(home / "run"),
                *words,
                "--transfer",
                way,
                *sets,
                *student,
            )
        )
        found = read(told)
        assert found["large.before"].tolist() == plain["large.before"].tolist()
        assert (
            told["task"]["classes"] == ["0", "1"]
            and told["test"]["before"]["accuracy"]["mean"] <= 1
        )


@pytest.mark.parametrize(
    ("labels", "kind", "says"),
    [
        (
            ["x"] * 30,
            "classification",
            "column `fits`: expected labels of at least two classes, got 'x' alone",
        ),
        (
            [1.0, 2.0, 1e300] * 10,
            "regression",
            "row 2, column 'fits': expected a finite number of less than 1e+38, got 1e+300",
        ),
    ],
)
def test_new_labels_are_named_as_written(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    labels: list[Any],
    kind: str,
    says: str,
) -> None:
    support = write_csv(home / "odd.csv", {**rooms(30, 7), "fits": labels})
    words = (
        "--support",
        str(support),
        "--transfer",
        "feature",
        "--set",
        "task.name=fits",
        "--set",
        f"task.kind={kind}",
    )
    assert says in mistake(monkeypatch, capsys, "adapt", str(home / "run"), *words)


def test_runs_without_inner_steps_say_so(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", {"path": str(home / "rooms.csv"), "tasks": TASKS}, inner=0)
    words = ("adapt", str(run), "--support", str(home / "support.csv"))
    out = answer(monkeypatch, capsys, *words)
    assert (
        "nothing was adapted" in out and "--steps N takes some" in out and "--transfer model" in out
    )
    assert json.loads(answer(monkeypatch, capsys, *words, "--json"))["adapted"] is False
    out = answer(monkeypatch, capsys, *words, "--steps", "2")
    assert "nothing was adapted" not in out and "adapted to" in out


def test_tasks_with_own_files_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("bonn", 0), ("kiel", 1)):
        content = flats(60, seed)
        write_csv(
            tmp_path / f"{name}.csv", {key: content[key] for key in ("size (m2)", "city", "rent")}
        )
    tasks = {
        name: {"path": str(tmp_path / f"{name}.csv"), "column": "rent"} for name in ("bonn", "kiel")
    }
    run = trained(tmp_path / "run", {"tasks": tasks})
    new = flats(20, 4)
    support = write_csv(
        tmp_path / "new.csv", {key: new[key] for key in ("size (m2)", "city", "rent")}
    )
    words = ("adapt", str(run), "--support", str(support), "--query", str(support))
    message = mistake(monkeypatch, capsys, *words)
    assert "expected --task to say of which task the labels in 'rent' are" in message
    told = json.loads(answer(monkeypatch, capsys, *words, "--task", "kiel", "--json"))
    assert {name.partition(".")[0] for name in told["scores"]} == {"kiel"}
    assert read(told)["bonn.target"].isna().all()
    assert read(told)["kiel.target"].tolist() == pytest.approx(new["rent"], rel=EXACT)
    assert "--task: expected one of bonn, kiel, got 'köln'" in mistake(
        monkeypatch, capsys, *words, "--task", "köln"
    )
    assert "--task: expected --support beside it" in mistake(
        monkeypatch, capsys, "adapt", str(run), "--task", "kiel"
    )


def test_parts_take_examples_in_their_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, column in (("old", "size (m2)"), ("new", "area")):
        content = flats(60, len(name))
        columns = {column: content["size (m2)"], "city": content["city"], "state": content["state"]}
        write_csv(tmp_path / f"{name}.csv", columns)
    parts: dict[str, dict[str, Any]] = {
        name: {"name": "files", "path": str(tmp_path / f"{name}.csv"), "tasks": {"state": {}}}
        for name in ("old", "new")
    }
    for part in parts.values():
        part |= {"shots": 2, "queries": 4}
    run = trained(tmp_path / "run", {"name": "several", "parts": parts})
    words = (
        "adapt",
        str(run),
        "--support",
        str(tmp_path / "new.csv"),
        "--query",
        str(tmp_path / "new.csv"),
    )
    assert "expected --task to say in the form of which of the parts old, new it is" in mistake(
        monkeypatch, capsys, *words
    )
    told = json.loads(answer(monkeypatch, capsys, *words, "--task", "new_state", "--json"))
    found = read(told)
    assert (
        set(found["new_state.after"]) <= {"good", "fair", "poor"}
        and found["old_state.target"].isna().all()
    )
    hits = (found["new_state.target"] == found["new_state.after"]).mean()
    assert told["scores"]["new_state.accuracy"][1] == pytest.approx(hits)


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("shape", [(24, 32), (31, 17), (5, 60)])
def test_maps_come_back_where_their_pixels_were(
    resize: Literal["stretch", "crop"], shape: tuple[int, int]
) -> None:
    """A map that says where each pixel of the picture is, resized and brought back, says so again."""
    size = (12, 16)
    where = torch.arange(shape[0] * shape[1]).reshape(1, *shape).float()
    shown = fitted_into(where, size, resize, nearest=True)[0].numpy()
    back = map_in_original(shown, shape, ImageResize(size, resize == "crop"), nothing=-1)
    assert back.shape == shape
    there = back >= 0
    rows, columns = np.divmod(back, shape[1])
    y, x = np.mgrid[: shape[0], : shape[1]]
    assert np.abs(rows - y)[there].max() <= np.ceil(shape[0] / size[0]) and there.mean() > 0.05
    assert np.abs(columns - x)[there].max() <= np.ceil(shape[1] / size[1]) + (resize == "crop")
    if resize == "stretch":
        assert there.all()
    again = fitted_into(torch.from_numpy(back)[None].float(), size, resize, nearest=True)[0].numpy()
    if min(shape) >= max(size):
        np.testing.assert_array_equal(again, shown)


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_boxes_come_back_where_they_were(resize: str) -> None:
    shape, size, box = (40, 90), (24, 32), (37.0, 11.0, 52.0, 33.0)
    (row,) = rows_of([Seen("a", box)], ["a"], shape, size, crop=resize == "crop")
    np.testing.assert_allclose(
        box_in_original(row[1:].astype(float), shape, ImageResize(size, resize == "crop")),
        box,
        atol=1e-4,
    )


def test_predicted_masks_fit_their_pictures(tmp_path: Path) -> None:
    """Pictures of different sizes; the labels that the model saw come back at the size and in the numbers of the files."""
    root = write_scenes(tmp_path / "scenes", 30)
    rng = np.random.default_rng(0)
    boxes = []
    for i, path in enumerate(sorted((root / "images").iterdir())):
        tall, wide = (24, 32) if i % 2 else (48, 40)
        Image.open(path).resize((wide, tall)).save(path)
        mask = root / "masks" / f"{i:03d}_mask.png"
        numbers = (
            np.asarray(Image.open(mask).resize((wide, tall), Image.Resampling.NEAREST)).astype(
                np.uint8
            )
            * 100
        )
        Image.fromarray(numbers).save(mask)
        left, top = rng.integers(0, 10, 2)
        boxes.append([f"images/{path.name}", ("disc", "box")[i % 2], left, top, left + 9, top + 11])
    names = ("picture", "class", "x1", "y1", "x2", "y2")
    write_csv(tmp_path / "boxes.csv", dict(zip(names, zip(*boxes, strict=True), strict=True)))
    with (root / "labels.csv").open() as file:
        table = list(csv.DictReader(file))
    write_csv(
        root / "labels.csv",
        {
            "image": [r["image"] for r in table],
            "mask": [f"masks/{i:03d}_mask.png" for i in range(30)],
        },
    )
    for folder in ("depths", "normals"):
        for path in (root / folder).iterdir():
            path.unlink()
    tasks = {
        "mask": {"classes": ["floor", "box", "disc"], "values": [0, 100, 200]},
        "things": {"path": str(tmp_path / "boxes.csv"), "kind": "detection"},
    }
    run = trained(
        tmp_path / "run",
        {"path": str(root), "size": (24, 32), "tasks": tasks},
        encoder={"name": "conv", "channels": [4]},
    )
    told = adapt_run(AdaptationRequest(run, root, root), 1)
    rows = pq.read_table(Path(told["folder"]) / "predictions.parquet").to_pylist()
    assert [row["picture"] for row in rows] == [f"images/{i:03d}.png" for i in range(30)]
    for i, row in enumerate(rows):
        shape = [24, 32] if i % 2 else [48, 40]
        assert row["mask.after.shape"] == shape == row["mask.target.shape"]
        assert set(row["mask.after"]) <= {0, 100, 200}
        truth = np.asarray(Image.open(root / "masks" / f"{i:03d}_mask.png"))
        same = np.reshape(row["mask.target"], shape) == truth
        assert same.all() if i % 2 else same.mean() > 0.9
        (box,) = row["things.target"]
        assert [box[key] for key in ("x1", "y1", "x2", "y2")] == pytest.approx(
            boxes[i][2:], abs=1e-3
        )
        assert box["class"] == boxes[i][1]
        for found in row["things.after"]:
            assert (
                found["class"] in ("disc", "box")
                and 0 <= found["x1"] <= found["x2"] <= shape[1]
                and found["score"] > 0
            )
    assert rows[0]["mask.classes"] == [
        {"value": v, "class": c} for v, c in ((0, "floor"), (100, "box"), (200, "disc"))
    ]
    episode = pq.read_table(
        Path(adapt_run(AdaptationRequest(run), 1)["folder"]) / "predictions.parquet"
    ).to_pylist()
    for row in episode:
        i = int(row["picture"][-7:-4])
        assert row["mask.after.shape"] == ([24, 32] if i % 2 else [48, 40])


def test_lost_files_name_the_option(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "rooms.csv", rooms(60, 0))
    run = trained(tmp_path / "run", {"path": str(tmp_path / "rooms.csv"), "tasks": TASKS})
    (tmp_path / "rooms.csv").unlink()
    for command in ("evaluate", "adapt"):
        assert "add --data PATH" in mistake(monkeypatch, capsys, command, str(run))
    with pytest.raises(UserError, match="no such file"):
        adapt_run(AdaptationRequest(run, tmp_path / "gone.csv"))


def test_broken_new_pictures_are_omitted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, new = write_scenes(tmp_path / "scenes", 30), write_scenes(tmp_path / "new", 20)
    for folder in ("depths", "normals", "masks"):
        for path in [*(root / folder).iterdir(), *(new / folder).iterdir()]:
            path.unlink()
    for path in (root, new):
        with (path / "labels.csv").open() as file:
            table = list(csv.DictReader(file))
        write_csv(
            path / "labels.csv",
            {name: [row[name] for row in table] for name in ("image", "larger")},
        )
    run = trained(tmp_path / "run", {"path": str(root), "size": 8, "tasks": {"larger": {}}})
    (new / "images" / "003.png").write_bytes(b"no picture")
    (new / "images" / ".hidden.png").touch()
    out = answer(monkeypatch, capsys, "adapt", str(run), "--support", str(new), "--query", str(new))
    assert "note: pictures: 1 cannot be read, and are left out: images/003.png (no picture)" in out
    assert "note: files: 1 are passed over" in out
    words = (
        "--support",
        str(new),
        "--query",
        str(new / "images"),
        "--transfer",
        "feature",
        "--json",
    )
    told = json.loads(
        answer(monkeypatch, capsys, "adapt", str(run), *words, "--set", "task.name=larger")
    )
    assert [name[-7:] for name in read(told)["picture"]] == [
        f"{i:03d}.png" for i in range(20) if i != 3
    ]
    assert "003.png (no picture)" in told["notes"][1]["text"]
    one = new / "images" / "004.png"
    told = json.loads(
        answer(
            monkeypatch,
            capsys,
            "adapt",
            str(run),
            "--support",
            str(new),
            "--query",
            str(one),
            "--json",
        )
    )
    assert read(told)["picture"].tolist() == ["004.png"]
    message = mistake(
        monkeypatch,
        capsys,
        "adapt",
        str(run),
        "--support",
        str(new),
        "--query",
        str(new / "images" / "003.png"),
    )
    assert "expected pictures that can be read, got none: 003.png (no picture)" in message


FAR = [(1e9, 10.0), (1e8, 1.0), (0.0, 1e-30), (-3e12, 100.0)]


def numbered(path: Path, offset: float, scale: float, rows: int, seed: int) -> Path:
    """Inputs a and b, and labels y that are `offset` and some times `scale`, in all their digits."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, rows))
    y = offset + scale * (a - b + 0.1 * rng.normal(size=rows))
    return write_csv(path, {"a": a.tolist(), "b": b.tolist(), "y": y.tolist()})


def close(found: pd.DataFrame, plain: pd.DataFrame, offset: float, scale: float) -> None:
    """Predictions and labels are the plain ones, moved and stretched, to 4 digits of their spread."""
    for column in ("y.target", "y.after"):
        assert found[column].dtype == np.float64
        np.testing.assert_allclose((found[column] - offset) / scale, plain[column], atol=2e-4)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run on labels around 0, of which what it predicts of new rows, adapted and carried to a new task."""
    root = tmp_path_factory.mktemp("plain")
    run = trained(
        root / "run",
        {"path": str(numbered(root / "d.csv", 0, 1, 200, 0)), "tasks": {"y": {}}},
        steps=20,
    )
    files = [
        numbered(root / f"{name}.csv", 0, 1, rows, seed)
        for name, rows, seed in (("s", 40, 1), ("q", 60, 2))
    ]
    adapted = adapt_run(AdaptationRequest(run, files[0], files[1], name="adapted"), 3)
    return {"run": run, "root": root, "adapted": adapted}


@pytest.mark.parametrize(("offset", "scale"), FAR)
def test_adapting_ignores_shift_and_scale(
    plain: dict[str, Any], tmp_path: Path, offset: float, scale: float
) -> None:
    data = {"path": str(numbered(tmp_path / "d.csv", offset, scale, 200, 0)), "tasks": {"y": {}}}
    run = trained(tmp_path / "run", data, steps=20)
    files = [
        numbered(tmp_path / f"{n}.csv", offset, scale, rows, seed)
        for n, rows, seed in (("s", 40, 1), ("q", 60, 2))
    ]
    told = adapt_run(AdaptationRequest(run, files[0], files[1]), 3)
    close(read(told), read(plain["adapted"]), offset, scale)
    for name, (before, after) in plain["adapted"]["scores"].items():
        unit = scale if name in ("y.mae", "y.rmse") else 1.0
        assert np.array(told["scores"][name]) / unit == pytest.approx((before, after), rel=1e-3)
    with files[1].open() as file:
        assert read(told)["y.target"].tolist() == [float(row["y"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(("offset", "scale"), FAR)
@pytest.mark.parametrize("way", ["feature", "model"])
def test_transferring_ignores_shift_and_scale(
    plain: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: str,
    offset: float,
    scale: float,
) -> None:
    def carried(offset: float, scale: float, name: str) -> dict[str, Any]:
        files = [
            numbered(tmp_path / f"{name}-{part}.csv", offset, scale, rows, seed)
            for part, rows, seed in (("s", 40, 1), ("q", 60, 2))
        ]
        words = (
            "--support",
            str(files[0]),
            "--query",
            str(files[1]),
            "--transfer",
            way,
            "--json",
            "--name",
            name,
        )
        kind = (
            "--set",
            "task.kind=regression",
            "--set",
            "task.name=y",
            "--set",
            "optimiser.steps=60",
        )
        rows: dict[str, Any] = json.loads(
            answer(monkeypatch, capsys, "adapt", str(plain["run"]), *words, *kind)
        )
        return rows

    ordinary, told = carried(0, 1, f"plain-{way}"), carried(offset, scale, f"far-{way}-{offset:g}")
    close(read(told), read(ordinary), offset, scale)
    for metric, unit in (("mae", scale), ("r2", 1.0), ("loss", 1.0)):
        expected = ordinary["test"]["after"][metric]["mean"]
        assert told["test"]["after"][metric]["mean"] / unit == pytest.approx(expected, rel=1e-3)
    assert told["task"]["std"] == pytest.approx(scale * ordinary["task"]["std"], rel=1e-4)
