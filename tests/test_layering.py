"""The layers of docs/design.md, read from the imports; and a core that needs torch alone."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "raymtl"
LAYERS = [
    {"types"},
    {"internals", "storage"},
    {"schema"},
    {"tasks", "encoders", "weighting", "modes"},
    {"data", "sharing"},
    {"learners"},
    {"step"},
    {"config"},
    {"cluster", "evaluation", "features", "run_folder"},
    {"reporting", "tracking"},
    {"adaptation", "training"},
    {"prediction"},
    {"distributed"},
    {"pipeline", "serving"},
    {"api"},
    {"cli"},
]
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}
RAY = (
    "distributed/",
    "pipeline/",
    "serving/",
    "reporting/ray_",
    "cluster/doctor/node_probe.py",
    "internals/ray.py",
)
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def imports(file: str) -> set[str]:
    """Dotted names that the file imports anywhere, function bodies included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


ENTRIES = {"__init__", "__main__"}


def room_of(name: str) -> str:
    return name.removesuffix(".py").split("/")[0]


IMPORTS = {file: imports(file) for file in FILES}


def goes_down(room: str, name: str) -> bool:
    """Whether a file of the room may import the name."""
    if not name.startswith("raymtl."):
        return True
    other = name.split(".")[1]
    return other in (room, "__version__") or RANK[other] < RANK[room]


def test_imports_go_down_the_layers_alone() -> None:
    offenders = [
        f"{file} imports {name}"
        for file, names in IMPORTS.items()
        for name in sorted(names)
        if room_of(file) not in ENTRIES and not goes_down(room_of(file), name)
    ]
    assert offenders == []


def test_ray_is_imported_at_its_edges_alone() -> None:
    users = [file for file, names in IMPORTS.items() if "ray" in {n.split(".")[0] for n in names}]
    assert [file for file in users if not file.startswith(RAY)] == []


def module_of(name: str) -> str | None:
    """The file of the package that has the dotted name, or that is it; None for other packages."""
    parts = name.split(".")[1:]
    for length in range(len(parts), 0, -1):
        for ending in (".py", "/__init__.py"):
            file = "/".join(parts[:length]) + ending
            if name.startswith("raymtl.") and file in IMPORTS:
                return file
    return None


def test_no_modules_import_each_other() -> None:
    """Imports for the type checker and in functions count too."""
    graph = {
        file: {module for name in names if (module := module_of(name)) not in (None, file)}
        for file, names in IMPORTS.items()
    }
    assert sum(map(len, graph.values())) > len(graph)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names a circle


def test_every_room_has_a_layer() -> None:
    assert {room_of(file) for file in FILES} - ENTRIES == set(RANK)


CORE = """
import sys
blocked = {"ray", "optuna", "torchvision", "pyarrow", "typer", "rich", "plotly", "jinja2", "tensorboard", "safetensors",
           "PIL", "pandas", "torchmetrics"}
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in blocked else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from raymtl.config import Experiment
from raymtl.data.episodes import build_episodes, on_device
from raymtl.step.meta_gradient import meta_gradient
chosen = Experiment().override({"weighting.name": "pcgrad", "sharing.name": "cross_stitch", "train.meta_batch": 2})
(episodes,), _ = build_episodes(chosen.data, chosen.data.load(), seed=0, split="train", step=0, indices=range(2))
problem = chosen.build()
params = problem.init_params()
meta = meta_gradient(problem, params, on_device(episodes, "cpu"))
assert all(gradient.isfinite().all() for gradient in meta.grads.values())
assert not blocked & {name.split(".")[0] for name in sys.modules}
print("trained a step")
"""


@pytest.mark.slow
def test_the_core_trains_without_ray() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CORE], capture_output=True, text=True, cwd=ROOT.parent, check=False
    )
    assert done.stdout.strip() == "trained a step", done.stderr
