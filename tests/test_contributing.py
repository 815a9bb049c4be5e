"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FILES = {"weighting": 5, "learner": 5, "data source": 4, "kind of task": 5}
"""Recipe -> how many files it touches."""

WRITTEN = ("docs/", "raymtl/schema/schema.json")
"""What a recipe leaves to the reader, or to a command."""

RECIPES = dict(re.findall(r"^## Add a ([\w ]+)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))
NEW_FILE = re.compile(r"^```python\n# (\S+)\n(.*?)^```", re.M | re.S)
CHANGE = re.compile(r"^```diff\n--- (\S+)\n(.*?)^```", re.M | re.S)
LISTED = re.compile(r"^\d\. `([^`]+)`:", re.M)

TOGETHER = """
from pathlib import Path

from raymtl.config import Experiment, load
from raymtl.schema import outline
from raymtl.schema.check import check_outline
from raymtl.schema.json_schema import json_schema
from raymtl.storage import strict_json
from raymtl.storage.yaml_document import read_document
from raymtl.tasks.kinds import kind_named
from raymtl.training.checkpointing import TrainContext
from raymtl.training.loop import local_batches, train_loop


def test_all_new_members_train_together(tmp_path: Path) -> None:
    config = tmp_path / "new.yaml"
    config.write_text(
        "data: {name: steps}\\nencoder: {name: mlp, hidden: [8]}\\n"
        "weighting: {name: inverse_loss}\\nlearner: {name: sign_maml}\\n"
        "train: {steps: 2, meta_batch: 2}\\n"
    )
    outline.PATH.write_text(strict_json.dumps(json_schema(Experiment)))
    check_outline(read_document(config), {})
    experiment = load(config)
    context = TrainContext(report=lambda *_: None, log_step=lambda *_: None)
    train_loop(experiment, {}, local_batches(experiment, {}), context, tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert kind_named("count").name == "count"
"""
"""A training with all new members, as a test of the copy."""


def change(text: str, hunk: str) -> str:
    """The text with the lines of the hunk that begin with a plus added."""
    lines = hunk.splitlines()
    before = "".join(f"{line[1:]}\n" for line in lines if line.startswith(" "))
    after = "".join(f"{line[1:]}\n" for line in lines)
    assert text.count(before) == 1, f"expected these lines once:\n{before}"
    return text.replace(before, after)


def follow(recipe: str, root: Path) -> None:
    """Writes the new files of a recipe below `root`, and changes those that it changes."""
    for path, content in NEW_FILE.findall(recipe):
        assert not (root / path).exists()
        (root / path).write_text(content)
    for path, hunks in CHANGE.findall(recipe):
        text = (root / path).read_text()
        for hunk in hunks.split("@@\n"):
            text = change(text, hunk)
        (root / path).write_text(text)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the repository in which all recipes have been followed."""
    root = tmp_path / "copy"
    root.mkdir()
    nothing_built = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("raymtl", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=nothing_built)
    shutil.copy(ROOT / "pyproject.toml", root)
    for recipe in RECIPES.values():
        follow(recipe, root)
    return root


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_lists_every_file_it_touches(name: str) -> None:
    recipe = RECIPES[name]
    listed = LISTED.findall(recipe)
    shown = {path for path, _ in [*NEW_FILE.findall(recipe), *CHANGE.findall(recipe)]}
    assert len(listed) == len(set(listed)) == FILES[name]
    assert shown <= set(listed)
    assert all(path.startswith(WRITTEN) for path in set(listed) - shown)
    assert all((ROOT / path).exists() for path, _ in CHANGE.findall(recipe))


def test_every_recipe_is_checked() -> None:
    assert RECIPES.keys() == FILES.keys()


@pytest.mark.slow
def test_new_members_pass_their_tests_and_the_laws(copy: Path) -> None:
    (copy / "tests" / "test_together.py").write_text(TOGETHER)
    own = [path for recipe in RECIPES.values() for path, _ in NEW_FILE.findall(recipe)]
    tests = [path for path in own if path.startswith("tests/")]
    laws = ["tests/weighting/test_weighting.py", "tests/learners/test_learners.py"]
    new = "inverse_loss or sign_maml or test_steps or test_count or together"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-k", new]
    done = subprocess.run(
        [*command, "tests/test_together.py", *tests, *laws],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 2 * len(tests)
