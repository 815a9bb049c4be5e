"""Components that are defined outside raymtl: how they come in, what is refused, and the laws that they obey."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
TRAINS = """
weighting: {name: own_weighting}
encoder: {name: own_encoder, width: 6}
sharing: {name: own_sharing}
learner: {name: own_learner}
"""
MODULE = """
from typing import Literal
import raymtl

@raymtl.register
class Mine(raymtl.LossWeightingSpec):
    name: Literal["%s"] = "%s"
    def build(self, tasks): ...
"""


KIND_MODULE = """
import raymtl
from raymtl.tasks.regression import RegressionKind

@raymtl.register
class Mine(RegressionKind):
    pass
"""
OF_A_KIND = "data: {name: files, path: d, tasks: {y: {kind: own_kind}}}\n"
ROWS = "a,b,y\n" + "".join(f"{i % 7},{i * i % 11},{i % 7 + i % 3}\n" for i in range(200))


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What a Python of its own does, so that nothing stays registered in this process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def cli(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return python(folder, "-m", "raymtl", *words)


def test_a_module_of_the_command_line_brings_its_components_in(tmp_path: Path) -> None:
    """From one process of the command line: the plan, and every method, has them."""
    (tmp_path / "own.yaml").write_text(TRAINS)
    code = (
        "import sys, json\n"
        "from raymtl.cli import app\n"
        "for words in ('train own.yaml --dry-run', 'methods weighting'):\n"
        "    app(['--import', 'tests.own_components', *words.split()], standalone_mode=False)\n"
        "from raymtl.run_folder import environment\n"
        "from raymtl.config import load\n"
        "from pathlib import Path\n"
        "print(json.dumps(environment(load(Path('own.yaml')), 'train')['components']))\n"
    )
    done = python(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "num_parameters" in done.stdout and "own_weighting" in done.stdout
    described = done.stdout.splitlines()[-1]
    assert '"weighting.own_weighting": {"module": "tests.own_components", "sha256": "' in described


MISTAKES: dict[str, tuple[dict[str, str], Sequence[str], str]] = {
    "not imported": (
        {"c.yaml": TRAINS},
        ("train", "c.yaml"),
        "c.yaml:3: encoder.name: expected one of conv",
    ),
    "no module": ({}, ("--import", "nowhere", "methods"), "--import nowhere: No module named"),
    "broken module": (
        {"broken.py": "x = 1\n1 / x - 1\nraise ValueError('no')\n"},
        ("--import", "broken", "methods"),
        "--import broken: ValueError: no (",
    ),
    "name taken": (
        {"taken.py": MODULE % ("pcgrad", "pcgrad"), "c.yaml": "seed: 1\n"},
        ("--import", "taken", "train", "c.yaml", "--dry-run"),
        "taken.Mine: name: expected a name of its own, got 'pcgrad', which raymtl.weighting.pcgrad",
    ),
    "no stages": (
        {"c.yaml": "encoder: {name: own_encoder, staged: false}\nsharing: {name: cross_stitch}\n"},
        ("--import", "tests.own_components", "train", "c.yaml", "--dry-run"),
        "sharing.name: cross_stitch separates or mixes tasks between the stages",
    ),
    "kind not imported": (
        {"d/t.csv": ROWS, "c.yaml": OF_A_KIND},
        ("train", "c.yaml", "--dry-run"),
        "c.yaml:1: data.tasks.y.kind: expected 'classification', 'binary'",
    ),
    "name of a kind taken": (
        {"taken.py": KIND_MODULE, "c.yaml": "seed: 1\n"},
        ("--import", "taken", "train", "c.yaml", "--dry-run"),
        "taken.Mine: name: expected a name of its own, got 'regression', which raymtl.tasks.",
    ),
    "unknown key": (
        {"c.yaml": "encoder: {name: own_encoder, widht: 3}\n"},
        ("--import", "tests.own_components", "train", "c.yaml", "--dry-run"),
        "c.yaml:1: encoder.widht: unknown key. Did you mean encoder.width?",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_sentence(case: str, tmp_path: Path) -> None:
    files, words, message = MISTAKES[case]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = cli(tmp_path, *words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and done.stderr.count("\n") == 1
    if "not imported" in case:
        assert "import its module first (raymtl --import MODULE ...)." in done.stderr


def installed(folder: Path, module: str) -> None:
    """A package whose entry point names the module, as pip would have put it there."""
    about = folder / "own_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[raymtl]\nweights = own_module\n")
    (folder / "own_module.py").write_text(module)


@pytest.mark.slow
def test_an_entry_point_brings_its_components_in(tmp_path: Path) -> None:
    installed(tmp_path, MODULE % ("from_a_package", "from_a_package"))
    done = cli(tmp_path, "methods", "weighting")
    assert done.returncode == 0, done.stderr
    assert "from_a_package" in done.stdout


@pytest.mark.slow
def test_a_broken_entry_point_is_one_sentence(tmp_path: Path) -> None:
    installed(tmp_path, "import nowhere_at_all\n")
    (tmp_path / "c.yaml").write_text("seed: 1\n")
    done = cli(tmp_path, "train", "c.yaml", "--dry-run")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "own-package: its entry point 'weights' (own_module) cannot be imported" in done.stderr


TRAINING = """
from pathlib import Path

import tests.own_components
from raymtl.config import load
from raymtl.storage import formats
from raymtl.training.checkpointing import TrainContext
from raymtl.training.loop import local_batches, train_loop

chosen = load(Path("c.yaml")).resolve()
arrays = chosen.data.load()
context = TrainContext(report=lambda *_: None, log_step=lambda *_: None)
train_loop(chosen, arrays, local_batches(chosen, arrays), context, Path("run"))
(task,) = chosen.data.make_tasks()
history = formats.read_rows(Path("run/history.parquet"))
first, *_, last = history
assert task.kind.name == "own_kind"
assert 0 < last["loss.y"] < first["loss.y"]
assert 0 <= last["val.y.near"] <= 1
assert last["val.near"] == last["val.y.near"], "the first metric is the one that is shown"
"""
STEPS = (
    "encoder: {name: mlp}\nlearner: {name: maml, inner_steps: 0}\ntrain: {steps: 40, lr: 0.05}\n"
    "evaluate: {val_episodes: 4}\n"
)


@pytest.mark.slow
def test_a_kind_of_task_of_ones_own_is_trained_and_scored(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "t.csv").write_text(ROWS)
    (tmp_path / "c.yaml").write_text(OF_A_KIND + STEPS)
    done = python(tmp_path, "-c", TRAINING)
    assert done.returncode == 0, done.stderr


def test_a_run_says_which_module_it_was_made_with(tmp_path: Path) -> None:
    from raymtl.config import load
    from raymtl.types import UserError

    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.yaml").write_text(TRAINS)
    (tmp_path / "environment.json").write_text(
        '{"components": {"weighting.own_weighting": {"module": "mine", "sha256": null}}}'
    )
    with pytest.raises(UserError, match=r"of the module mine, .*--import mine"):
        load(tmp_path / "best" / "config.yaml")


def test_a_configuration_imports_nothing(tmp_path: Path) -> None:
    """Whatever a YAML file names, no module of that name is imported."""
    (tmp_path / "harm.py").write_text("raise SystemExit(7)\n")
    (tmp_path / "name.yaml").write_text("weighting: {name: 'harm.Harm'}\n")
    (tmp_path / "key.yaml").write_text("import: [harm]\n")
    for file in ("name.yaml", "key.yaml"):
        assert cli(tmp_path, "train", file).returncode == 2


LAWS = (
    "tests/tasks/test_kinds.py",
    "tests/weighting/test_weighting.py",
    "tests/sharing/test_sharing.py",
    "tests/learners/test_learners.py",
    "tests/step/test_meta_gradient.py",
    "tests/training/test_loop.py",
)


@pytest.mark.slow
def test_the_laws_of_the_unions_hold_for_components_from_outside() -> None:
    environment: dict[str, Any] = {**os.environ, "RAYMTL_TEST_OWN": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-k", "own_", *LAWS],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(done.stdout.strip().splitlines()[-1].split(" passed")[0]) > 30
