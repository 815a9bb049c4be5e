"""A configuration object reads no file; `resolve` reads them once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raymtl.config import Experiment, load, parse
from raymtl.data import VOC, Files, Prepared, Several, Source
from raymtl.data.tables import fit as fitting
from raymtl.data.tables.schema import Fitted
from raymtl.data.tables.settings import FilesConfig
from raymtl.types import UserError
from tests.data.own import own_table


def files(folder: Path) -> Files:
    return Files.model_validate({"path": str(folder / "gone.csv"), "tasks": {"y": {}}})


SOURCES: dict[str, Callable[[Path], Source]] = {
    "files": files,
    "prepared": lambda folder: Prepared(path=str(folder / "gone")),
    "voc": lambda folder: VOC(folder=str(folder / "gone")),
    "several": lambda folder: Several(parts={"a": files(folder)}),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_a_source_whose_files_are_gone_can_be_made(
    tmp_path: Path, make: Callable[[Path], Source]
) -> None:
    source = make(tmp_path)
    assert not source.is_resolved
    assert not Experiment.model_validate({"data": source}).is_resolved
    with pytest.raises(UserError, match=r"files have been read.*resolve\(\)"):
        source.make_tasks()
    with pytest.raises(UserError, match=r"gone"):
        source.resolve()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[FilesConfig]:
    """What was fitted from here on."""
    fitted: list[FilesConfig] = []
    fit = fitting.fit

    def count(source: FilesConfig) -> Fitted:
        fitted.append(source)
        return fit(source)

    monkeypatch.setattr(fitting, "fit", count)
    return fitted


def test_a_configuration_with_stages_and_a_search_is_fitted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = own_table(tmp_path)
    path = tmp_path / "own.yaml"
    path.write_text(
        f"data:\n  name: files\n  path: {table.path}\n"
        "  tasks: {level: {column: task 0.x}, answer: {column: task 1.x}}\n"
        "encoder: {name: mlp, hidden: [8]}\nstages: [{steps: 5, set: {learner.inner_steps: 0}}]\n"
        "search: {learner.inner_lr: {choice: [0.01, 0.1]}}\n"
    )
    fitted = counted(monkeypatch)
    chosen = load(path, {"seed": 3, "data.shots": 4})
    assert len(fitted) == 1
    tree = chosen.model_dump(mode="json")
    again = parse(tree)
    assert again.is_resolved and again == chosen == again.resolve()
    assert chosen.override({"data.queries": 4}).is_resolved
    assert len(fitted) == 1


def test_findings_of_other_settings_are_found_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Experiment.model_validate(
        {"data": own_table(tmp_path), "encoder": {"name": "mlp", "hidden": [8]}}
    )
    assert chosen.is_resolved
    fitted = counted(monkeypatch)
    tree: dict[str, Any] = chosen.model_dump(mode="json")
    tree["data"]["exclude"] = ["code"]
    without = parse(tree)
    assert not without.is_resolved and not fitted
    assert without.resolve().data.input_shape != chosen.data.input_shape
    assert without.resolve() == chosen.override({"data.exclude": ["code"]})
    assert len(fitted) == 3


def test_what_depends_on_the_tasks_is_checked_when_they_are_known(tmp_path: Path) -> None:
    """Their kinds are found in the files; a mistake that needs none of this is told at once."""
    path = own_table(tmp_path).path
    tree = {
        "data": {"name": "files", "path": path, "tasks": {"level": {"column": "task 0.x"}}},
        "encoder": {"name": "mlp", "hidden": [8]},
    }
    with pytest.raises(UserError, match=r"^train.meta_batch: "):
        parse(tree | {"train": {"workers": 4, "meta_batch": 2}})
    impossible = parse(tree | {"learner": {"name": "protonet"}})
    with pytest.raises(UserError, match=r"^learner.name: protonet cannot learn data.tasks"):
        impossible.resolve()
