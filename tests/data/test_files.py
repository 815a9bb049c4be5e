"""The user's own tables: what is inferred, how columns become numbers, where rows go, and what episodes hold."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymtl.config import Experiment, load
from raymtl.data import SPLITS, Files
from raymtl.data.base import Split
from raymtl.data.episodes import build_episodes, on_device
from raymtl.data.tables.splits import by_rank
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import UserError
from tests.data.own import columns, own_table, write_csv, write_parquet
from tests.narrowing import checked, present, shared_inputs

TASKS = {f"t{i}": {"column": f"task {i}.x"} for i in range(12)}


def rows_of(source: Files) -> dict[str, np.ndarray]:
    """Which rows each split draws from."""
    arrays = source.load()
    return {split: arrays[f"rows/{split}"] for split in SPLITS}


def simple(folder: Path, content: dict[str, Any], name: str = "t.parquet", **values: Any) -> Files:
    path = (write_csv if ".csv" in name else write_parquet)(folder / name, content)
    return Files(path=str(path), **{"tasks": {"y": {}}, **values}).resolve()


def regression_table(rows: int = 60, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=rows)
    return {"x": x.tolist(), "y": (2 * x + 1).tolist(), **more}


def test_twelve_tasks_with_missing_labels_train(tmp_path: Path) -> None:
    """From YAML alone."""
    write_parquet(tmp_path / "table.parquet", columns())
    tasks = "\n".join(f"    {name}: {{column: {task['column']}}}" for name, task in TASKS.items())
    config = tmp_path / "own.yaml"
    config.write_text(
        f"data:\n  name: files\n  path: {tmp_path}/table.parquet\n  tasks:\n{tasks}\n"
        "encoder: {name: mlp, hidden: [8]}\nlearner: {name: maml, inner_steps: 1}\n"
    )
    experiment = load(config)
    experiment.save(tmp_path / "saved.yaml")
    assert load(tmp_path / "saved.yaml") == experiment
    source = checked(experiment.data, Files)
    assert [task.kind.name for task in source.make_tasks()[:3]] == [
        "regression",
        "binary",
        "classification",
    ]
    assert all(0.7 < fitted.labelled < 0.9 for fitted in present(source.fitted).tasks.values())
    episodes, _ = build_episodes(
        source, source.load(), seed=0, split="train", step=0, indices=range(2)
    )
    algorithm = experiment.build()
    meta = meta_gradient(algorithm, algorithm.init_params(), on_device(episodes, "cpu"))
    assert meta.losses.isfinite().all() and len(meta.losses) == 12


def test_roles_are_inferred_with_reasons(tmp_path: Path) -> None:
    source = own_table(tmp_path)
    assert {c.column: c.role for c in present(source.fitted).columns} == {
        "age (years)": "number",
        "blood.pressure": "number",
        "smoker": "number",
        "visit": "number",
        "Stadt": "category",
        "code": "number",
    }
    assert present(source.fitted).left_out == {
        "constant": "always '1'",
        "id": "a name of the row: almost all are different",
        "number": "the number of the row",
    }
    assert source.input_shape == (5 + 4,)


def test_csv_and_parquet_give_equal_arrays(tmp_path: Path) -> None:
    content = columns()
    one = simple(tmp_path, content, tasks=TASKS)
    for name, options in (("t.csv", {}), ("t.tsv.csv", {"delimiter": "\t"})):
        path = write_csv(tmp_path / name, content, options.get("delimiter", ","))
        other = Files(path=str(path), tasks=TASKS).resolve()
        assert present(other.fitted).columns == present(one.fitted).columns
        arrays = other.load()
        for key, values in one.load().items():
            np.testing.assert_array_equal(arrays[key], values)


def test_training_rows_alone_standardise_numbers(tmp_path: Path) -> None:
    content = regression_table(part=["train"] * 40 + ["val"] * 10 + ["test"] * 10)
    content["x"][40:] = [1e6] * 20
    source = simple(tmp_path, content, split={"column": "part"})
    train = np.array(content["x"][:40])
    (column,) = present(source.fitted).columns
    assert column.mean == pytest.approx(train.mean())
    assert column.std == pytest.approx(train.std())
    (task,) = present(source.fitted).tasks.values()
    assert task.means[0] == pytest.approx(np.mean(content["y"][:40]))
    arrays = source.load()
    np.testing.assert_allclose(
        arrays["inputs"][:40, 0], (train - train.mean()) / train.std(), rtol=1e-5
    )
    np.testing.assert_array_equal(arrays["rows/train"], np.arange(40))
    np.testing.assert_array_equal(arrays["rows/test"], np.arange(50, 60))


def test_unknown_categories_have_their_own_value(tmp_path: Path) -> None:
    content = regression_table(
        colour=(["red", "green"] * 20) + ["green"] * 10 + ["blue", None] * 5,
        split=["train"] * 40 + ["val"] * 10 + ["test"] * 10,
    )
    source = simple(tmp_path, content, inputs=["colour"])
    assert present(source.fitted).split_column == "split"
    inputs = source.load()["inputs"]
    np.testing.assert_array_equal(inputs[:2], [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(inputs[50:], [[0, 0, 1]] * 10)


def test_texts_and_lists_are_inputs(tmp_path: Path) -> None:
    """Texts as places and values of their terms, lists as vectors."""
    rng = np.random.default_rng(0)
    words = [
        " ".join(rng.choice(["Good", "bad", "ugly", "fine", "so-so"], 4)) + f" {i}"
        for i in range(60)
    ]
    content = regression_table(note=words, embedding=rng.normal(3, 2, size=(60, 5)).tolist())
    source = simple(tmp_path, content, text_size=16, inputs=["note", "emb*"])
    assert [(c.role, c.size) for c in present(source.fitted).columns] == [
        ("text", 2 * 16),
        ("vector", 5),
    ]
    inputs = source.load()["inputs"]
    np.testing.assert_allclose(np.linalg.norm(inputs[:, 16:32], axis=1), 1, rtol=1e-6)
    vector = present(source.fitted).columns[1]
    np.testing.assert_allclose(
        inputs[:, 32:] * vector.std + vector.mean, content["embedding"], rtol=1e-5
    )


def test_roles_can_be_given(tmp_path: Path) -> None:
    source = simple(
        tmp_path,
        regression_table(code=[i % 3 for i in range(60)]),
        inputs={"code": "category", "x": "number"},
    )
    assert [(c.column, c.size) for c in present(source.fitted).columns] == [("code", 4), ("x", 1)]
    assert set(source.load()["inputs"][:, :3].sum(1)) == {1.0}


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [
        ([0.5 * i for i in range(60)], "regression", ()),
        (["a", "b", ""] * 20, "binary", ("a", "b")),
        (["a", "b", "c"] * 20, "classification", ("a", "b", "c")),
        (["ja", "nein", "ja"] * 20, "binary", ("nein", "ja")),
        (["sick", "not sick", "sick"] * 20, "binary", ("not sick", "sick")),
        (["+", "-", "+"] * 20, "binary", ("-", "+")),
        ([True, False, None] * 20, "binary", ("false", "true")),
        ([1, 0] * 30, "binary", ("0", "1")),
        ([3, 10, 2] * 20, "classification", ("2", "3", "10")),
        ([3.0, None, 2.0] * 20, "classification", ("2", "3")),
        (list(range(60)), "regression", ()),
        ([[1.0, 2.0 * i] for i in range(60)], "regression", ()),
        ([["a"], [], ["b", "a"], None] * 15, "multilabel", ("a", "b")),
        (["a", "a; b", None, "b"] * 15, "multilabel", ("a", "b")),
        (["a|b", "b|c", "a|b", ""] * 15, "multilabel", ("a", "b", "c")),
        (["a;b", "c;d", "e"] * 20, "classification", ("a;b", "c;d", "e")),
        ([None, 2.5, float("nan")] * 20, "regression", ()),
    ],
)
def test_the_kind_of_a_task_is_inferred(
    tmp_path: Path, labels: list[Any], kind: str, classes: tuple[str, ...]
) -> None:
    source = simple(tmp_path, {"x": regression_table()["x"], "y": labels})
    fitted = present(source.fitted).tasks["y"]
    assert (fitted.kind, fitted.classes, fitted.inferred) == (kind, classes, True)
    arrays = source.load()
    known = np.array([v is not None and v != "" and v == v for v in labels])
    np.testing.assert_array_equal(arrays["mask/y"], known)
    target = arrays["target/y"]
    for row in np.flatnonzero(known):
        label = labels[row]
        if kind == "regression":
            np.testing.assert_allclose(target[row], label)
        elif kind == "multilabel":
            assert target[row].tolist() == [float(name in label) for name in classes]
        else:
            text = str(label).lower() if isinstance(label, bool) else str(label).removesuffix(".0")
            assert classes[target[row]] == text


def test_columns_join_into_vectors_or_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content = regression_table(a=rng.normal(size=60).tolist(), b=rng.normal(9, 3, size=60).tolist())
    content |= {"cat": [1, 0, None] * 20, "dog": [False, None, None] * 20}
    tasks = {"position": {"columns": ["a", "b"]}, "animals": {"columns": ["cat", "dog"]}}
    source = simple(tmp_path, content, tasks=tasks, inputs=["x"])
    found = present(source.fitted).tasks
    assert (found["position"].kind, found["animals"].kind) == ("regression", "multilabel")
    assert found["position"].means[1] == pytest.approx(9, abs=1.5)
    arrays = source.load()
    np.testing.assert_allclose(
        arrays["target/position"], np.stack([content["a"], content["b"]], 1), rtol=1e-6
    )
    np.testing.assert_array_equal(
        arrays["target/animals"][:3], [[1, 0], [0, np.nan], [np.nan, np.nan]]
    )
    assert arrays["mask/animals"][:3].tolist() == [True, True, False]


def test_splits_ignore_the_order_of_rows(tmp_path: Path) -> None:
    """They have their shares."""
    content = regression_table(rows=200)
    content["y"] = list(range(200))
    source = simple(tmp_path, content)
    order = np.random.default_rng(3).permutation(200)
    other = simple(
        tmp_path, {key: [values[i] for i in order] for key, values in content.items()}, "u.parquet"
    )
    for split, size in zip(SPLITS, (140, 30, 30), strict=True):
        (one, a), (two, b) = ((rows_of(s)[split], s.load()["target/y"]) for s in (source, other))
        assert set(a[one]) == set(b[two])
        assert len(one) == size
    seeded = simple(tmp_path, content, split={"seed": 1})
    assert set(rows_of(seeded)["test"]) != set(rows_of(source)["test"])


def test_equal_rows_stay_together(tmp_path: Path) -> None:
    """Those with equal inputs or equal keys."""
    content = regression_table()
    content["x"] = [i // 4 / 7 for i in range(60)]
    content["who"] = [f"{i // 6}" for i in range(60)]
    for source, of in (
        (simple(tmp_path, content, inputs=["x"]), "x"),
        (simple(tmp_path, content, inputs=["x"], split={"key": "who"}), "who"),
    ):
        rows = rows_of(source)
        values = [{content[of][row] for row in rows[split]} for split in SPLITS]
        assert all(values)
        assert not (values[0] & values[1] | values[0] & values[2] | values[1] & values[2])


def test_the_smallest_share_gets_a_group() -> None:
    hashed = np.array([3, 1, 2, 3], np.uint64)
    assert by_rank(hashed, (0.98, 0.01, 0.01)).tolist() == [2, 0, 1, 2]


def test_an_unnamed_split_comes_from_training(
    tmp_path: Path,
) -> None:
    """Where the column of splits does not name it."""
    content = regression_table(part=(["Train"] * 4 + ["TEST"] * 2) * 10)
    rows = rows_of(simple(tmp_path, content, split={"column": "part"}))
    assert (
        {content["part"][i] for i in rows["train"]}
        == {content["part"][i] for i in rows["val"]}
        == {"Train"}
    )
    assert len(rows["test"]) == 20
    assert len(rows["val"]) == round(40 * 0.15 / 0.85)


def test_files_and_folders_can_name_the_splits(tmp_path: Path) -> None:
    parts = {}
    for split, start in (("train", 0), ("val", 40), ("test", 50)):
        folder = tmp_path / "all" / split
        folder.mkdir(parents=True)
        parts[split] = {
            key: values[start : start + 20] for key, values in regression_table(rows=70).items()
        }
        write_parquet(folder / "part.parquet", parts[split])
    by_folder = Files(path=str(tmp_path / "all"), tasks={"y": {}}).resolve()
    by_path = Files(
        path={s: str(tmp_path / "all" / s / "*.parquet") for s in SPLITS}, tasks={"y": {}}
    ).resolve()
    for source in (by_folder, by_path):
        arrays = source.load()
        for split in SPLITS:
            targets = arrays["target/y"][arrays[f"rows/{split}"]]
            np.testing.assert_allclose(sorted(targets), sorted(parts[split]["y"]), rtol=1e-6)


def test_folders_named_like_assignments_are_columns(tmp_path: Path) -> None:
    for country in ("de", "fr"):
        folder = tmp_path / f"country={country}"
        folder.mkdir()
        write_parquet(folder / "part.parquet", regression_table(rows=40))
    source = Files(path=str(tmp_path), tasks={"y": {}}).resolve()
    assert present(source.fitted).columns[1].categories == ("de", "fr")
    assert source.load()["inputs"][[0, 79], 1:].tolist() == [[1, 0, 0], [0, 1, 0]]


def test_group_episodes_hold_one_group(tmp_path: Path) -> None:
    """No group is in two splits."""
    rng = np.random.default_rng(0)
    school = rng.integers(0, 20, 400)
    content = {
        "x": rng.normal(size=400).tolist(),
        "y": (school + rng.random(400) / 2).tolist(),
        "school": [f"s {i}" for i in school],
    }
    source = simple(tmp_path, content, group="school", episodes="groups", shots=[2, 4], queries=6)
    arrays = source.load()
    seen: dict[Split, set[str]] = {}
    for split in SPLITS:
        seen[split] = set()
        stacks, domains = build_episodes(
            source, arrays, seed=0, split=split, step=0, indices=range(30)
        )
        numbers = [d.removeprefix("school s ") for d in domains]
        labels = [
            np.floor(torch.cat([e.support.targets["y"], e.query.targets["y"]], 1).numpy())
            for e in stacks
        ]
        assert {str(int(v)) for rows in labels for row in rows for v in row} == set(numbers)
        assert all(len(set(row)) == 1 for rows in labels for row in rows)
        assert {shared_inputs(e.support).shape[1] for e in stacks} == {2, 3, 4}
        seen[split] |= set(numbers)
        for episodes in stacks:
            for support, query in zip(
                shared_inputs(episodes.support).tolist(),
                shared_inputs(episodes.query).tolist(),
                strict=True,
            ):
                assert not {r[0] for r in support} & {r[0] for r in query}
    assert not (
        seen["train"] & seen["val"] | seen["train"] & seen["test"] | seen["val"] & seen["test"]
    )
    assert len(set(arrays["names/train"])) == 14


def test_few_shot_episodes_hold_disjoint_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 30, 900)
    content = {"x": (kind + rng.random(900) / 2).tolist(), "y": [f"k{i}" for i in kind]}
    source = simple(
        tmp_path,
        content,
        tasks={"y": {"kind": "classification"}},
        episodes="classes",
        ways=[2, 4],
        shots=1,
        queries=3,
    )
    arrays = source.load()
    (column,) = present(source.fitted).columns
    found: dict[Split, set[int]] = {}
    for split in SPLITS:
        stacks, _ = build_episodes(source, arrays, seed=0, split=split, step=0, indices=range(80))
        found[split] = set()
        assert {int(e.support.targets["y"].max()) + 1 for e in stacks} == {2, 3, 4}
        for episodes in stacks:
            ways = int(episodes.support.targets["y"].max()) + 1
            assert episodes.query.targets["y"][0].tolist() == [
                w for w in range(ways) for _ in range(3)
            ]
            values = (
                torch.cat([shared_inputs(episodes.support), shared_inputs(episodes.query)], 1)[
                    ..., 0
                ]
                * column.std
                + column.mean
            )
            labels = torch.cat([episodes.support.targets["y"], episodes.query.targets["y"]], 1)
            for row, label in zip(values, labels, strict=True):
                of = {int(w): {int(v) for v in row[label == w].floor()} for w in label}
                assert all(len(classes) == 1 for classes in of.values())
                assert len(set.union(*of.values())) == ways
                found[split] |= set.union(*of.values())
    assert sum(map(len, found.values())) == 30
    assert not (
        found["train"] & found["val"]
        | found["train"] & found["test"]
        | found["val"] & found["test"]
    )


def test_labels_can_lie_in_files_of_their_own(tmp_path: Path) -> None:
    content = regression_table(who=[f"w{i}" for i in range(60)])
    write_parquet(tmp_path / "x.parquet", {"who": content["who"], "x": content["x"]})
    write_csv(tmp_path / "y.csv", {"who": content["who"][::-1][:50], "y": content["y"][::-1][:50]})
    source = Files(
        path=str(tmp_path / "x.parquet"), key="who", tasks={"y": {"path": str(tmp_path / "y.csv")}}
    ).resolve()
    arrays = source.load()
    assert arrays["mask/y"].tolist() == [False] * 10 + [True] * 50
    np.testing.assert_allclose(arrays["target/y"][10:], content["y"][10:], rtol=1e-6)


def test_each_task_may_have_its_data_set(tmp_path: Path) -> None:
    for name, rows in (("a", 50), ("b", 70)):
        write_parquet(tmp_path / f"{name}.parquet", regression_table(rows=rows))
    tasks = {name: {"column": "y", "path": str(tmp_path / f"{name}.parquet")} for name in "ab"}
    source = Files(tasks=tasks).resolve()
    arrays = source.load()
    assert arrays["mask/a"].tolist() == [True] * 50 + [False] * 70
    assert (arrays["mask/a"] ^ arrays["mask/b"]).all()
    assert source.input_shape == (1,)


def test_a_single_task_draws_from_its_labelled_rows(tmp_path: Path) -> None:
    content = columns(rows=200)
    source = simple(tmp_path, content, tasks=TASKS).select_tasks(("t4",))
    assert Files.model_validate(source.model_dump(mode="json")) == source
    arrays = simple(tmp_path, content, tasks=TASKS).load()
    (episodes,), _ = build_episodes(source, arrays, seed=0, split="train", step=0, indices=range(5))
    assert episodes.query.masks["t4"].all() and episodes.support.masks["t4"].all()
    assert tuple(episodes.query.targets) == ("t4",)


def test_findings_outlast_changes_of_the_files(
    tmp_path: Path,
) -> None:
    """They are found anew where the settings change."""
    source = own_table(tmp_path)
    (tmp_path / "own.parquet").unlink()
    assert Files.model_validate(source.model_dump(mode="json")) == source
    with pytest.raises(UserError, match=r"data.path: expected a file, a folder or a URL"):
        Files.model_validate({**source.model_dump(mode="json"), "exclude": ["code"]}).resolve()


def test_the_commands_path_replaces_the_files(
    tmp_path: Path,
) -> None:
    """Before either is read."""
    path, table = (
        tmp_path / "own.yaml",
        write_csv(tmp_path / "here.csv", columns(tasks=1, missing=0.0)),
    )
    path.write_text(
        "data:\n  name: files\n  path: nowhere.csv\n  tasks:\n    rent: {column: task 0.x}\nencoder: {name: mlp}\n"
    )
    with pytest.raises(UserError, match=r"own.yaml:3: data.path"):
        load(path)
    moved = load(path, {"data.path": str(table)})
    assert checked(moved.data, Files).path == str(table)
    with pytest.raises(UserError, match=r"^--set: data.path: expected a file"):
        load(path, {"data.path": "nowhere-else.csv"})


def test_a_url_is_read_as_a_path_is(tmp_path: Path) -> None:
    import fsspec

    path = write_parquet(tmp_path / "t.parquet", regression_table())
    with fsspec.open("memory://own/t.parquet", "wb") as file:
        file.write(path.read_bytes())
    sources = [
        Files(path=where, tasks={"y": {}}).resolve()
        for where in (str(path), f"file://{path}", "memory://own/t.parquet")
    ]
    for source in sources[1:]:
        assert present(source.fitted).columns == present(sources[0].fitted).columns
        np.testing.assert_array_equal(source.load()["inputs"], sources[0].load()["inputs"])


def test_cells_of_matlab_and_arff_are_tables(tmp_path: Path) -> None:
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    x, y = np.empty((1, 6), object), np.empty((1, 6), object)
    for t in range(6):
        x[0, t], y[0, t] = rng.normal(size=(10 + t, 3)), rng.normal(size=(10 + t, 1))
    savemat(tmp_path / "cells.mat", {"X": x, "Y": y})
    source = Files(
        path=str(tmp_path / "cells.mat"), tasks={"y": {}}, group="task", episodes="groups"
    ).resolve()
    arrays = source.load()
    np.testing.assert_allclose(
        arrays["target/y"], np.concatenate([p.ravel() for p in y[0]]), rtol=1e-6
    )
    assert source.input_shape == (3,)
    (tmp_path / "a.arff").write_text(
        "@relation r\n@attribute a numeric\n@attribute k {u,v}\n@attribute y numeric\n@data\n"
        + "".join(f"{i / 3},{'uv'[i % 2]},{i * 2.5}\n" for i in range(30))
    )
    found = Files(path=str(tmp_path / "a.arff"), tasks={"y": {}}).resolve()
    assert [c.role for c in present(found.fitted).columns] == ["number", "category"]
    np.testing.assert_allclose(found.load()["target/y"], np.arange(30) * 2.5)


def test_missing_inputs_become_the_training_mean(
    tmp_path: Path,
) -> None:
    """Where it is allowed."""
    content = regression_table(part=["train"] * 40 + ["val"] * 10 + ["test"] * 10)
    content["x"][7] = content["x"][55] = None
    source = simple(tmp_path, content, split={"column": "part"}, missing_inputs="mean")
    assert source.load()["inputs"][[7, 55], 0].tolist() == [0, 0]


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {},
        {"tasks": {"y": {"column": "Y"}}},
        r"data.tasks.y: .*t.parquet: expected the column 'Y', got 'x', 'y'",
    ),
    ({}, {"inputs": ["xx"]}, r"data.inputs: .*expected the column 'xx', got 'x', 'y'"),
    ({}, {"group": "patient"}, r"data.group: .*expected the column 'patient'"),
    (
        {"y": ["a"] * 30 + ["b"] * 29 + ["z"]},
        {"tasks": {"y": {"classes": ["a", "b"]}}},
        r"t.parquet: row 59, column 'y': expected a label of task 'y', one of \['a', 'b'\], got 'z'",
    ),
    (
        {"y": ["no", "yes"] * 30},
        {"tasks": {"y": {"classes": [True, False]}}},
        r"row 0, column 'y'.*put the classes in quotes",
    ),
    (
        {"y": [None] * 60},
        {},
        r"data.tasks.y: .*t.parquet: column 'y': expected labels in the rows for training, got none",
    ),
    (
        {"x": [float("nan")] + [1.5 * i for i in range(59)]},
        {},
        r"row 0, column 'x': expected a number, got none .*missing_inputs: mean",
    ),
    (
        {"x": [float("inf")] + [1.5 * i for i in range(59)]},
        {},
        r"row 0, column 'x': expected a finite number, got \[inf\]",
    ),
    (
        {"who": ["a", "b", "c"] * 20, "part": ["train"] * 30 + ["test"] * 30},
        {"group": "who", "split": {"column": "part"}},
        r"row 30: expected who 'a' in train alone, where .*row 0 has it, got it in test too",
    ),
    (
        {"part": ["train"] * 59 + ["oops"]},
        {"split": {"column": "part"}},
        r"row 59, column 'part': expected train, val or test, got 'oops'",
    ),
    (
        {"y": [f"w {i} {i}" for i in range(60)]},
        {},
        r"column 'y': expected labels that come again, got 60 different texts",
    ),
    ({"y": ["a"] * 60}, {}, r"column 'y': expected labels of two classes at least, got 'a' alone"),
    ({}, {"tasks": {}}, r"data.tasks: expected a task at least"),
    ({}, {"tasks": {"keys": {"column": "y"}}}, r"data.tasks: keys: expected another name"),
    ({}, {"episodes": "groups"}, r"data.group: expected the column that groups"),
    (
        {"y": [float("inf")] + [1.5 * i for i in range(59)]},
        {},
        r"row 0, column 'y': expected a finite number",
    ),
    (
        {"y": ["1.5", "2.5", "oops"] * 20},
        {"tasks": {"y": {"kind": "regression"}}},
        r"row 2, column 'y': expected a number, got 'oops'",
    ),
    (
        {"y": ["a", "b", "c"] * 20},
        {"tasks": {"y": {"kind": "binary"}}},
        r"expected two classes of kind binary, got 3",
    ),
    (
        {"who": ["a", None] * 30},
        {"group": "who"},
        r"row 1, column 'who': expected a group, got none",
    ),
    (
        {"v": [[1.0, 2.0]] * 59 + [[1.0]]},
        {"inputs": {"v": "vector", "x": "number"}},
        r"row 59, column 'v': expected 2 numbers as in other rows, got 1",
    ),
    ({}, {"inputs": ["x", "y"]}, r"data.inputs: expected no label among them, got 'y' of task 'y'"),
    (
        {"y": [f"k{i % 6}" for i in range(60)]},
        {"episodes": "classes"},
        r"data.split: expected 5 classes of 24 rows at least in train",
    ),
]


@pytest.mark.parametrize(("content", "values", "says"), BAD, ids=[says[:40] for *_, says in BAD])
def test_unlearnable_tables_are_told_in_one_sentence(
    tmp_path: Path, content: dict[str, Any], values: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError) as caught:
        simple(tmp_path, {**regression_table(), **content}, **values).load()
    message = str(caught.value)
    assert re.search(says, message), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (
            "nowhere.parquet",
            r"data.path: expected a file, a folder or a URL, got .*nowhere.parquet, where there is none",
        ),
        (
            "nosuch://bucket/t.parquet",
            r"data.path: nosuch://bucket/t.parquet cannot be read \(.*nosuch",
        ),
        (
            "$NO_SUCH_VARIABLE/t.csv",
            r"data.path: expected the environment variable NO_SUCH_VARIABLE to be set",
        ),
    ],
)
def test_a_path_that_leads_nowhere_is_told(path: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Files(path=path, tasks={"y": {}}).resolve()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", "", "t.csv: expected a header and rows, got an empty file"),
        ("t.csv", "x,y\n", "t.csv: expected rows, got an empty file"),
        (
            "t.csv",
            "x,y\n1,2\n1,2,3\n",
            r"t.csv: cannot be read as csv with the delimiter .,. .*Expected 2 columns, got 3.*Correct the row",
        ),
        ("t.csv", "x,x,y\n1,2,3\n", "t.csv: expected different names of columns, got 'x' twice"),
        ("t.parquet", "no parquet", "t.parquet: expected a Parquet file, got something else"),
        ("t.docx", "hello", "data.path: expected files of one known kind"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=says):
        Files(path=str(tmp_path / name), tasks={"y": {}}).resolve()


def test_parts_of_different_shape_are_told(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", regression_table())
    write_parquet(tmp_path / "b.parquet", regression_table(z=[1] * 60))
    with pytest.raises(
        UserError, match=r"b.parquet: expected the columns of .*a.parquet, got others: it has 'z'"
    ):
        Files(path=str(tmp_path), tasks={"y": {}}).resolve()
    write_parquet(
        tmp_path / "b.parquet", {**regression_table(), "x": [f"w{i % 9}" for i in range(60)]}
    )
    with pytest.raises(
        UserError, match=r"b.parquet: column 'x': expected double as in .*a.parquet, got string"
    ):
        Files(path=str(tmp_path), tasks={"y": {}}).resolve()


def test_two_tasks_of_one_name_are_told(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("data:\n  name: files\n  tasks:\n    y: {}\n    y: {}\n")
    with pytest.raises(UserError, match=r"twice.yaml:5: data.tasks.y: the key stands twice"):
        load(path)


def test_a_missing_path_is_asked_for() -> None:
    assert Files().fitted is None
    with pytest.raises(
        UserError, match=r"^data.path: expected a file, a folder or a URL, got none"
    ):
        Experiment.model_validate({"data": {"name": "files"}}).resolve()


def test_hashes_do_not_change_between_versions(tmp_path: Path) -> None:
    """Or a run that goes on would train on what it was to be tested on."""
    arrays = own_table(tmp_path).load()
    told = hashlib.sha256(
        b"".join(arrays[f"rows/{split}"].astype("<i8").tobytes() for split in SPLITS)
    ).hexdigest()
    assert told[:16] == "f9add15712b6282e"


def test_text_of_another_encoding_is_told(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    rows = "".join(f"Zürich,{i},2\nGenève,{i},3\n" for i in range(30))
    path.write_bytes(b"name,x,y\n" + rows.encode("latin1"))
    with pytest.raises(
        UserError, match=r"latin.csv: line 2: expected text in utf8, got the byte 0xfc"
    ):
        Files(path=str(path), tasks={"y": {"kind": "regression"}}).resolve()
    found = (
        Files(path=str(path), tasks={"y": {"kind": "regression"}}, encoding="latin1")
        .resolve()
        .found
    )
    assert found.columns[0].categories == ("Genève", "Zürich")
