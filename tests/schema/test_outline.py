"""The outline says of a mistake what the complete check says, or nothing."""

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymtl.config import Experiment, dotted_names
from raymtl.config.load import load_document
from raymtl.schema import check, outline
from raymtl.schema.check import check_outline
from raymtl.schema.names import members
from raymtl.storage.yaml_document import Document, read_document
from raymtl.types import Spec, UserError

CONFIGS = sorted((Path(__file__).parent.parent.parent / "tune_configs").glob("*.yaml"))
WRONG: tuple[Any, ...] = ("word", "", "1", [], [1, 2], ["a"], {"a": [[1]]}, None, True, -1, 1.5, 10**30, float("nan"))  # fmt: skip
NEVER_FITS = {"a": [[1]]}
"""A value that no key of a section takes, other than mappings that the program writes."""
SECTIONS = tuple(Experiment.model_fields)
METHODS = tuple(section for section in SECTIONS if members(section, Experiment))
Tree = dict[str, Any]


@pytest.fixture(autouse=True)
def _one_outline(monkeypatch: pytest.MonkeyPatch, root: type[Spec]) -> None:
    """Reads the outline once for all cases."""
    monkeypatch.setattr(check, "outline", lambda: root)


@pytest.fixture(scope="module")
def root() -> type[Spec]:
    return outline.outline()


def said(
    reads: Callable[[Document, Mapping[str, Any]], Any], tree: Tree, overrides: Mapping[str, Any]
) -> str | None:
    """The sentence on what is wrong with the tree."""
    try:
        reads(Document(Path("x.yaml"), copy.deepcopy(tree), {}), overrides)
    except UserError as error:
        return str(error)
    return None


def sentence(tree: Tree, overrides: Mapping[str, Any] | None = None) -> str | None:
    """What the outline says; None if it says nothing.

    It is what the complete check says. Where two overrides are wrong, the complete check may name
    the other one, and says the same of one of them alone.
    """
    overrides = overrides or {}
    quick = said(check_outline, tree, overrides)
    if quick is not None:
        complete = said(load_document, tree, overrides)
        assert complete is not None, (tree, overrides)
        if quick != complete:
            alone = [said(load_document, tree, {key: value}) for key, value in overrides.items()]
            assert quick in alone, (tree, overrides)
    return quick


def kinds(section: str) -> list[tuple[Tree, type[Spec]]]:
    """Each class of a section with the values that choose it."""
    union = members(section, Experiment)
    if union:
        return [({"name": name}, spec) for name, spec in union.items()]
    annotation = Experiment.model_fields[section].annotation
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [({}, annotation)]
    return []


def fields(section: str) -> Iterator[tuple[Tree, str]]:
    for chosen, spec in kinds(section):
        for key in spec.model_fields:
            if key not in ("name", "fitted"):
                yield chosen, key


@pytest.mark.parametrize("section", SECTIONS)
def test_wrong_values_are_refused_alike(section: str) -> None:
    refused = [sentence({section: value}) for value in WRONG]
    for chosen, key in fields(section):
        refused += [sentence({section: {**chosen, key: value}}) for value in WRONG]
        assert sentence({section: {**chosen, key: NEVER_FITS}}), f"{section}.{key}"
    assert any(refused)


@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_keys_are_refused_alike(section: str) -> None:
    assert "unknown key" in str(sentence({f"{section}x": 1}))
    for chosen, key in fields(section):
        assert f"{section}.{key}x: " in str(sentence({section: {**chosen, f"{key}x": 1}}))


@pytest.mark.parametrize("section", METHODS)
def test_unknown_methods_are_refused_alike(section: str) -> None:
    for name in members(section, Experiment):
        assert "expected one of" in str(sentence({section: {"name": f"{name}x"}}))
    assert "Add the name" in str(sentence({section: {"steps": 1}}))


INNER: list[tuple[Callable[[Any], Tree], tuple[str, ...]]] = [
    (lambda values: {"tune": {"asha": values}}, ("grace", "reduction", "metric")),
    (lambda values: {"tune": {"sampler": values}}, ("startup_trials", "multivariate")),
    (lambda values: {"search": {"learner.inner_lr": values}}, ("uniform", "int", "choice", "when")),
    (lambda values: {"stages": [values]}, ("steps", "set")),
    (lambda values: {"stages": [{"steps": 1, "set": values}]}, ("learner.inner_lr", "train.lr")),
    (lambda values: {"data": {"name": "files", "split": values}}, ("column", "fractions", "seed")),
    (
        lambda values: {"data": {"name": "files", "tasks": {"a": values}}},
        ("column", "columns", "kind", "classes", "stride", "ignore"),
    ),
    (
        lambda values: {"data": {"name": "several", "parts": {"a": {"name": "digits", **values}}}},
        ("shots", "tasks"),
    ),
    (
        lambda values: {"sharing": {"name": "branching", "tree": {"sum": values}}},
        ("follows", "stages"),
    ),
]


@pytest.mark.parametrize(("tree", "keys"), INNER)
def test_inner_mistakes_are_refused_alike(tree: Callable[[Any], Tree], keys: Any) -> None:
    for key in keys:
        assert sentence(tree({f"{key}x": 1}))
        assert sentence(tree({key: NEVER_FITS}))
        for value in WRONG:
            sentence(tree({key: value}))


@pytest.mark.parametrize(
    "search",
    [
        {"learner.inner_lrr": {"uniform": [0, 1]}},
        {"train.workers": {"int": [1, 2]}},
        {"learner.inner_lr": {"uniform": [0, 1], "when": {"learner.nam": "maml"}}},
        {"learner.name": {"choice": ["maml", "mamll"]}},
        {"learner.inner_steps": {"choice": [1, "many"]}},
        {"train.lr": {"uniform": [-1, 1]}},
        {"learner.name": {"choice": ["maml", "reptile"]}, "learner.inner_lr": {"int": [-2, 2]}},
    ],
)
def test_spaces_are_refused_alike(search: Tree) -> None:
    assert sentence({"search": search})


@pytest.mark.parametrize("path", ["missing.csv", "$NO_SUCH_VARIABLE/a.csv", "~/[no] such.csv"])
def test_missing_data_are_refused_alike(path: str) -> None:
    data = {"name": "files", "path": path, "tasks": {"y": {}}}
    assert bool(sentence({"data": data})) == ("[" not in path)  # a pattern, which is left for later
    assert sentence({"data": {**data, "path": "here.csv"}}, {"data.path": "gone.csv"})
    assert sentence({"data": {**data, "tasks": {}}}) is None
    assert sentence({"data": {**data, "path": __file__}}) is None


def test_random_overrides_are_read_alike() -> None:
    rng = np.random.default_rng(0)
    names = [*dotted_names(Experiment), "learner.inner_lrr", "weighting.weights.left", "a.b"]
    values = (*WRONG, 1, 2, 0.5, "sgd", "maml", "static", "group", {"name": "mlp"}, ["*"])
    trees: list[Tree] = [{}, {"learner": {"name": "reptile"}, "train": {"steps": 3}}]
    refused = 0
    for _ in range(400):
        chosen = rng.choice(len(names), size=rng.integers(1, 3), replace=False)
        overrides = {names[i]: values[rng.integers(len(values))] for i in chosen}
        refused += sentence(trees[rng.integers(2)], overrides) is not None
    assert 100 < refused < 400


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_are_accepted(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outline asks whether a file of data exists, and does not open it."""
    monkeypatch.setenv("RAYMTL_DATA", str(tmp_path))
    (tmp_path / "tabular").mkdir()
    (tmp_path / "tabular" / "school.mat").touch()
    check_outline(read_document(path), {})
