"""Nothing that is read can run programs: the syntax tree of every file, walked for what would let it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymtl.cluster.doctor.check import FLOORS

ROOT = Path(__file__).parent.parent
FILES = sorted(p.relative_to(ROOT).as_posix() for part in ("raymtl", "benchmarks", "tests") for p in (ROOT / part).rglob("*.py"))  # fmt: skip
# An unpickler that knows arrays of numbers alone, and its test, by name, so that another file has to be added here.
PICKLES = {"raymtl/data/formats/pickled.py", "tests/data/test_cifar100.py"}
# Modules of Ray, and of raymtl, whose names stand in the constants of the same file; and the user's own components, by the
# name that the user gives on the command line, which a test of tests/schema/test_components.py holds apart from the YAML.
IMPORTS = {"raymtl/internals/ray.py", "raymtl/__init__.py", "raymtl/schema/component_modules.py"}
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "jsonpickle",
    "pickle5",
}
UNSAFE_YAML = {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"}
YAML_LOADERS = {"Loader", "FullLoader", "UnsafeLoader", "CLoader", "CFullLoader", "CUnsafeLoader"}
SHELL = {
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "tempfile.mktemp",
}
READ_PICKLES = {
    "pandas.read_pickle",
    "pd.read_pickle",
    "ray.cloudpickle",
    "torch.hub.load",
    "torch.jit.load",
}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression that is one; else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def is_true(call: ast.Call, keyword: str) -> bool:
    return any(
        k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is True
        for k in call.keywords
    )


def unsafe(source: str, *, pickles: bool = False, imports: bool = False) -> Iterator[str]:  # noqa: C901  one check for each danger
    """What in the source could run a program that stands in what is read."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{name.name}" for name in node.names)]
        if not pickles:
            yield from (
                n
                for n in names
                if n.split(".")[0] in MODULES or n.split(".")[-1] in {"cloudpickle", "read_pickle"}
            )
        yield from (name for name in names if name in {"yaml.load", "os.system", "os.popen"})
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if name in READ_PICKLES | SHELL or (
                name.startswith("yaml.") and node.attr in UNSAFE_YAML | YAML_LOADERS
            ):
                yield name
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in ("eval", "exec", "compile", "__import__"):
                yield name
            if name == "torch.load" and not is_true(node, "weights_only"):
                yield "torch.load without weights_only=True"
            if is_true(node, "shell"):
                yield f"{name}(shell=True)"
            if is_true(node, "allow_pickle"):
                yield f"{name}(allow_pickle=True)"
            written = bool(node.args) and isinstance(node.args[0], ast.Constant)
            if name.endswith("import_module") and not written and not imports:
                yield f"{name} of a name that is not written here"


def test_no_file_executes_what_it_reads() -> None:
    offenders = [
        f"{file}: {what}"
        for file in FILES
        for what in unsafe(
            (ROOT / file).read_text(), pickles=file in PICKLES, imports=file in IMPORTS
        )
    ]
    assert offenders == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "from ray import cloudpickle",
        "import ray\nray.cloudpickle.loads(b'')",
        "import pandas as pd\npd.read_pickle('a')",
        "import torch\ntorch.load('a')",
        "import torch\ntorch.load('a', weights_only=False)",
        "import yaml\nyaml.load('a', yaml.SafeLoader)",
        "import yaml\nyaml.compose('a', yaml.UnsafeLoader)",
        "from yaml import load",
        "eval('1')",
        "exec('1')",
        "__import__('os')",
        "import os\nos.system('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nsubprocess.getoutput('ls')",
        "import numpy as np\nnp.load('a', allow_pickle=True)",
        "import importlib\nimportlib.import_module(config['name'])",
        "from importlib import import_module\nimport_module(name)",
    ],
)
def test_every_way_to_execute_is_found(source: str) -> None:
    assert list(unsafe(source))


@pytest.mark.parametrize(
    "source",
    [
        "import yaml\nyaml.safe_load('a')\nyaml.compose('a', yaml.SafeLoader)\nyaml.safe_load_all('a')",
        "import torch\ntorch.load('a', weights_only=True)\nmodel.eval()",
        "import importlib\nimportlib.import_module('raymtl.config')",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
        "import re\nre.compile('a')",
    ],
)
def test_safe_ways_pass(source: str) -> None:
    assert list(unsafe(source)) == []


def test_pickles_are_allowed_in_their_files_alone() -> None:
    assert list(unsafe("import pickle", pickles=True)) == []
    assert list(unsafe("import torch\ntorch.load('a')", pickles=True))


def test_the_policy_states_the_doctors_floors() -> None:
    rows = re.findall(r"^\| `?([\w-]+)`? \| ([\d.]+) \|", (ROOT / "SECURITY.md").read_text(), re.M)
    assert {name.lower(): floor for name, floor in rows} == {
        name: floor for name, (floor, _) in FLOORS.items()
    }


def test_every_shipped_yaml_is_plain_data() -> None:
    for path in (
        ROOT / "cluster.yaml",
        *(ROOT / "clusters").glob("*.yaml"),
        *(ROOT / "tune_configs").glob("*.yaml"),
    ):
        assert "!!" not in path.read_text()
