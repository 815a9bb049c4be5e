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
    "unknown key": (
        {"c.yaml": "encoder: {name: own_encoder, widht: 3}\n"},
        ("--import", "tests.own_components", "train", "c.yaml", "--dry-run"),
        "c.yaml:1: encoder.widht: unknown key. Did you mean encoder.width?",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_sentence(case: str, tmp_path: Path) -> None:
    files, words, message = MISTAKES[case]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = cli(tmp_path, *words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and done.stderr.count("\n") == 1
    if case == "not imported":
        assert "import its module first (raymtl --import MODULE ...)." in done.stderr


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
