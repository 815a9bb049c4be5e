"""Real texts with labels out of what is installed, and chemical strings from a grammar.

| name | a text is | tasks |
|---|---|---|
| docstrings | the documentation of a function or class | its package; function, method or class |
| errors | the message of a statement `raise` | the exception; its package |
| names | the name of a function or class | its package; function, method or class |
| molecules | a molecule in SMILES, made by chance | its ring; an acid or none; a halogen or none |

The sources of packages are parsed and not run. Equal texts are taken once.
"""

import ast
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("networkx", "numpy", "optuna", "plotly", "ray", "scipy", "sklearn", "sympy", "torch")
EXCEPTIONS = (
    "AttributeError",
    "ImportError",
    "IndexError",
    "KeyError",
    "NotImplementedError",
    "RuntimeError",
    "TypeError",
    "ValueError",
)
MOST_FILES = 400
"""Of a package, evenly spaced."""
MOST_OF_A_CLASS = 600
LONGEST = 2000
"""Characters of a text; what is beyond is cut off."""


class Corpus(NamedTuple):
    """Texts [N] and the labels [N] of each task."""

    texts: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]


class Row(NamedTuple):
    """A text with a label of each task; the classes of the first one are balanced."""

    text: str
    labels: Mapping[str, str]


class Definition(NamedTuple):
    """A function or a class in the source of a package."""

    package: str
    kind: str
    node: ast.FunctionDef | ast.ClassDef


@cache
def _trees(package: str) -> tuple[ast.Module, ...]:
    """Modules of a package, without those of its tests."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return ()
    folder = Path(spec.origin).parent
    files = [
        file for file in sorted(folder.rglob("*.py")) if "test" not in str(file.relative_to(folder))
    ]
    trees = []
    for file in files[:: max(1, len(files) // MOST_FILES)]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                trees.append(ast.parse(file.read_text(encoding="utf8")))
            except (SyntaxError, UnicodeDecodeError):
                continue
    return tuple(trees)


def _definitions(package: str) -> Iterator[Definition]:
    for tree in _trees(package):
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        methods = {id(item) for one in classes for item in one.body}
        for one in classes:
            yield Definition(package, "class", one)
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            if id(node) in methods:
                yield Definition(package, "method", node)
            else:
                yield Definition(package, "function", node)


def docstrings() -> Corpus:
    rows = []
    for package in PACKAGES:
        for definition in _definitions(package):
            text = ast.get_docstring(definition.node)
            if text and len(text) >= 20:
                rows.append(Row(text, {"package": package, "kind": definition.kind}))
    return _corpus(rows)


def names() -> Corpus:
    rows = []
    for package in PACKAGES:
        for definition in _definitions(package):
            name = definition.node.name
            if len(name) > 3 and not name.startswith("__"):
                rows.append(Row(name, {"package": package, "kind": definition.kind}))
    return _corpus(rows)


def errors() -> Corpus:
    rows = []
    for package in PACKAGES:
        for tree in _trees(package):
            for node in ast.walk(tree):
                if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                    continue
                exception, text = _raised(node.exc)
                if exception in EXCEPTIONS and len(text) >= 10:
                    rows.append(Row(text, {"exception": exception, "package": package}))
    return _corpus(rows)


def _raised(call: ast.Call) -> tuple[str, str]:
    """The name of an exception, and what is literal in its message."""
    if not isinstance(call.func, ast.Name) or not call.args:
        return "", ""
    literals = [
        node.value
        for node in ast.walk(call.args[0])
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return call.func.id, " ".join(" ".join(literals).split())


RINGS = {"aromatic": ("c1ccccc1", "c1ccncc1"), "aliphatic": ("C1CCCCC1", "C1CCNCC1"), "none": ("",)}
HALOGENS = ("F", "Cl", "Br")
ACID = "C(=O)O"
OTHERS = ("O", "N", "C#N", "C(=O)N", "C(=O)OC", "OC(=O)C", "S")


def molecules(number: int = 4000) -> Corpus:
    chances = random.Random(0)
    rows = []
    for _ in range(number):
        ring = chances.choice(list(RINGS))
        has_acid, has_halogen = chances.random() < 0.5, chances.random() < 0.5
        branches = chances.choices(OTHERS, k=chances.randint(2, 5))
        if has_acid:
            branches.append(ACID)
        if has_halogen:
            branches.append(chances.choice(HALOGENS))
        if ring != "none":
            branches.append(chances.choice(RINGS[ring]))
        labels = {"ring": ring, "acid": str(has_acid), "halogen": str(has_halogen)}
        rows.append(Row(_chain(branches, chances), labels))
    return _corpus(rows, number)


def _chain(branches: list[str], chances: random.Random) -> str:
    """A chain of atoms with these branches, such as CC(Cl)CNCC(c1ccccc1)C."""
    chances.shuffle(branches)
    atoms = []
    for branch in branches:
        atoms.append("".join(chances.choices("CCCCNOS", k=chances.randint(0, 3))))
        atoms.append(f"C({branch})")
    return "".join(atoms) + chances.choice(["C", "CC", "N", "O"])


def _corpus(rows: Iterable[Row], most: int = MOST_OF_A_CLASS) -> Corpus:
    """Each text once, at most `most` of a class of the first task, in an order by chance."""
    shuffled = list(rows)
    random.Random(0).shuffle(shuffled)
    once: dict[str, Row] = {}
    counts: Counter[str] = Counter()
    for row in shuffled:
        text = row.text[:LONGEST]
        label = next(iter(row.labels.values()))
        if text not in once and counts[label] < most:
            once[text] = row
            counts[label] += 1
    tasks = next(iter(once.values())).labels
    return Corpus(
        tuple(once), {task: tuple(row.labels[task] for row in once.values()) for task in tasks}
    )


CORPORA: dict[str, Callable[[], Corpus]] = {
    "docstrings": docstrings,
    "errors": errors,
    "names": names,
    "molecules": molecules,
}
