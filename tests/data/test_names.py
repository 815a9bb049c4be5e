"""Names as users have them: with markup, as YAML reads them otherwise, in any locale; and advice that can be followed."""

import csv
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import raymtl
from raymtl.cli import app
from raymtl.cli.options import overrides
from raymtl.config import Experiment, load
from raymtl.data import Files
from raymtl.types import UserError
from tests.narrowing import checked

X = np.random.default_rng(0).normal(size=60)
MODEL = "encoder: {name: mlp, hidden: [8]}\nlearner: {name: maml, inner_steps: 0}\n"


def write(folder: Path, columns: Mapping[str, Any], name: str = "t.csv") -> None:
    with (folder / name).open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def configured(
    folder: Path, data: str, path: str = "t.csv", sets: Sequence[str] = ()
) -> Experiment:
    """The experiment on a file beside the configuration, whose other keys of data are given in YAML."""
    config = folder / "c.yaml"
    config.write_text(
        f"data:\n  name: files\n  path: {folder / path}\n{data}{MODEL}", encoding="utf8"
    )
    return load(config, overrides(list(sets)))


def source_of(folder: Path, *words: Any) -> Files:
    """What `configured` reads."""
    return checked(configured(folder, *words).data, Files)


NAMES = [
    "[/b] x",
    "size [m2]",
    "[red]z",
    ":smile:",
    "\\[a]",
    "<b>bold</b>",
    "[link=http://x]",
    "{x}",
    "%s",
]


@pytest.mark.parametrize("names", [NAMES[:3], NAMES[3:6], NAMES[6:]])
def test_names_are_printed_as_they_are(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of tasks, classes and categories."""
    monkeypatch.chdir(tmp_path)
    words = [names[i % 3] for i in range(60)]
    write(
        tmp_path,
        {
            **{name: X + i for i, name in enumerate(names)},
            "kind": words,
            "y": words,
            "left out": ["[/q]"] * 60,
        },
    )
    configured(tmp_path, "  tasks: {y: {}}\n")
    done = CliRunner().invoke(app, ["data", "inspect", "c.yaml"], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    for name in (*names, "[/q]"):
        assert name in done.output


@pytest.mark.parametrize("task", ["on", "no", "y", "0", "2020-01-01", "null", "010", "1_000"])
def test_a_task_is_named_as_it_is_written(tmp_path: Path, task: str) -> None:
    write(tmp_path, {"x": X, task: 2 * X})
    experiment = configured(tmp_path, f"  tasks:\n    {task}: {{}}\n")
    assert experiment.data.task_names == (task,)
    assert configured(
        tmp_path, "  tasks: {}\n", sets=[f"data.tasks={{{task}: {{}}}}"]
    ).data.task_names == (task,)
    experiment.save(tmp_path / "saved.yaml")
    assert load(tmp_path / "saved.yaml") == experiment


def test_columns_named_with_numbers_are_columns(tmp_path: Path) -> None:
    write(tmp_path, {"0": X, "1": X + 1, "2": 2 * X})
    for inputs in ("[0, 1]", "{0: number, 1: number}", "['0', '1']"):
        found = source_of(tmp_path, f"  inputs: {inputs}\n  tasks: {{2: {{}}}}\n")
        assert [column.column for column in found.found.columns] == ["0", "1"]
    for more in ("  exclude: [0]\n", "  group: 0\n", "  key: 0\n", "  split: {key: 0}\n"):
        found = source_of(tmp_path, f"{more}  tasks: {{t: {{column: 2}}}}\n")
        assert "0" not in [column.column for column in found.found.columns] or "split" in more


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("  inputs: [x, no]\n", "data.inputs.1: expected a text, got False, as which YAML reads no and off: put it in q"),
        ("  exclude: [yes]\n", "data.exclude.0: expected a text, got True, as which YAML reads yes and on: put it in q"),
        ("  group: off\n", "data.group: expected a text, got False, as which YAML reads no and off: put it in quotes"),
        ("  split: {column: on}\n", "data.split.column: expected a text, got True"),
        ("  inputs: [1.5]\n", "data.inputs.0: expected a text, got 1.5, which YAML reads as a number: put it in quotes"),
        ("  inputs: [2020-01-01]\n", "data.inputs.0: expected a text, got 2020-01-01, which YAML reads as a date"),
        ("  inputs: [010]\n", "data.inputs: .*expected the column '8'.* YAML reads 010"),
        ("  inputs: {x: numbr}\n", "data.inputs.x: expected 'number'.* got 'numbr'. Did you mean number"),
        ("  missing_values: [no]\n", "data.missing_values.0: expected a text, got False"),
        ("  encoding: 1252\n", "data.encoding: expected a text, got 1252. Put it in quotes"),
    ],
)  # fmt: skip
def test_misread_yaml_is_told_with_its_key(tmp_path: Path, data: str, says: str) -> None:
    write(tmp_path, {"x": X, "no": X + 1, "y": 2 * X})
    with pytest.raises(UserError, match=says) as raised:
        configured(tmp_path, f"{data}  tasks: {{y: {{}}}}\n")
    assert "c.yaml:" in str(raised.value)


@pytest.mark.parametrize("task", ["sp.ecies", "a/b", "[/b]", "größe (m)", "", "-x"])
def test_impossible_task_names_have_a_remedy(tmp_path: Path, task: str) -> None:
    write(tmp_path, {"x": X, "y": 2 * X})
    with pytest.raises(
        UserError, match=r"expected a name of letters, digits, _, - and spaces, got .*: write \S+"
    ) as raised:
        configured(tmp_path, f"  tasks:\n    {task!r}: {{column: y}}\n")
    assert "pattern" not in str(raised.value)
    written = str(raised.value).partition(": write ")[2].partition(", or another")[0]
    write(tmp_path, {"x": X, task or "''": 2 * X})
    if task:
        assert configured(tmp_path, f"  tasks:\n    {written}\n").data.task_names


def test_impossible_run_names_are_told(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: a/b\n")
    with pytest.raises(UserError, match=r"c.yaml:1: name: expected ASCII letters, .* got 'a/b'.$"):
        load(tmp_path / "c.yaml")


ADVICE: list[tuple[str, bytes, str, str]] = [
    ("t.txt", b"x,y\n" + b"".join(b"%d,%d\n" % (i * i, 3 * i) for i in range(60)), "Set data.format", "data.format=csv"),
    ("t.csv", b"x,y\n1,2,3\n" + b"1,2\n" * 60, "set data.delimiter", "data.path=u.csv"),
    ("t.csv", "größe,y\n".encode("latin1") + b"".join(b"%d,%d\n" % (i * i, 3 * i) for i in range(60)), "Set data.encoding", "data.encoding=latin1"),
    ("t.csv", "x,y\n".encode("utf-16-le") + "".join(f"{i * i},{3 * i}\n" for i in range(60)).encode("utf-16-le"), "Set data.encoding: utf-16-le", "data.encoding=utf-16-le"),
    ("t.csv", b"a;b|y\n" + b"".join(b"%d;%d|%d\n" % (i % 3, i % 2, 3 * i) for i in range(60)), "", "data.delimiter=|"),
    ("t.csv", b"x,z,y\n" + b"".join(b"%d,%s,%d\n" % (i * i, b"" if i == 7 else b"1.5", 3 * i) for i in range(60)) + b"3,2,3\n", "data.missing_inputs: mean", "data.missing_inputs=mean"),
    ("t.csv", b"x,y\n" + b"".join(b"%d,w%d\n" % (i * i, i) for i in range(60)), "Say data.tasks.y.kind", "data.tasks.y.kind=classification"),
    ("t.csv", b"x,z,y\n" + b"".join(b"%d,%d,%d\n" % (i * i, i % 7, 3 * i) for i in range(60)), "", "data.exclude=[z]"),
    ("t.csv", b"x,y\n" + b"".join(b"%d,%d\n" % (i * i, 3 * i) for i in range(60)), "", "data.split.fractions=[0.5, 0.25, 0.25]"),
    ("t.csv", b"x,y\n" + b"".join(b"%d,%d\n" % (i * i, 3 * i) for i in range(60)), "", "data.inputs={x: category}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says", "advice"), ADVICE)
def test_what_a_message_says_can_be_set(
    tmp_path: Path,
    name: str,
    content: bytes,
    says: str,
    advice: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    (tmp_path / "u.csv").write_text("x,y\n" + "".join(f"{i * i},{3 * i}\n" for i in range(60)))
    if says:
        with pytest.raises(UserError, match=says):
            configured(tmp_path, "  tasks: {y: {}}\n", name)
    assert source_of(tmp_path, "  tasks: {y: {}}\n", name, [advice]).found.rows >= 60


def test_set_is_named_where_its_value_is_wrong(tmp_path: Path) -> None:
    write(tmp_path, {"x": X, "y": 2 * X})
    for sets, says in (
        ("data.formt=csv", r"^--set: data.formt: unknown key. Did you mean data.format\?"),
        ("data.format=xls", r"^--set: data.format: expected 'parquet'"),
        ("data.split.seed=x", r"^--set: data.split.seed: expected a valid integer"),
        ("data.inputs=[x, no]", r"^--set: data.inputs.1: expected a text, got False"),
        ("data.tasks.z.kind=regression", r"--set: data.tasks.z: .*expected the column 'z'"),
    ):
        with pytest.raises(UserError, match=says):
            configured(tmp_path, "  tasks: {y: {}}\n", sets=[sets])


@pytest.mark.parametrize(
    "mark", [",", ";", "|", "-", ":", "#", "*", "&", "!", "%", "@", "`", ">", "?"]
)
def test_a_mark_alone_is_itself(mark: str) -> None:
    assert overrides([f"data.delimiter={mark}"]) == {"data.delimiter": mark}


@pytest.mark.slow
def test_yaml_and_names_are_utf8_in_any_locale(tmp_path: Path) -> None:
    write(tmp_path, {"größe": X, "цена": 2 * X})
    (tmp_path / "c.yaml").write_bytes(
        f"data:\n  name: files\n  path: t.csv\n  tasks:\n    цена: {{}}\n{MODEL}# ü\n".encode()
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "raymtl",
            "data",
            "inspect",
            "c.yaml",
            "--set",
            "data.tasks.цена.loss=huber",
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONPATH": os.getcwd(),
        },
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "größe" in done.stdout.decode() and "цена" in done.stdout.decode()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_yaml_is_read_by_its_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    write(tmp_path, {"x": X, "größe": 2 * X})
    text = f"data:\n  name: files\n  path: {tmp_path / 't.csv'}\n  tasks: {{größe: {{}}}}\n{MODEL}"
    (tmp_path / "c.yaml").write_bytes(
        (("\ufeff" if encoding == "utf-16-be" else "") + text).encode(encoding)
    )
    assert load(tmp_path / "c.yaml").data.task_names == ("größe",)


def test_no_console_takes_names_for_markup() -> None:
    own = [path for path in Path(raymtl.__file__).parent.rglob("*.py") if path.name != "console.py"]
    assert [
        path.name
        for path in own
        if re.search(r"(?<!plain_)\bConsole\(", path.read_text(encoding="utf8"))
    ] == []
