"""The notebooks of examples/ run from the first cell to the last."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def script(notebook: Path) -> str:
    """The code of a notebook, in the order of its cells."""
    cells = json.loads(notebook.read_text(encoding="utf8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code and all(not cell.get("outputs") for cell in cells)
    return "\n\n".join(code)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    """As a script, whose classes are of `__main__` as those of a notebook are."""
    program = tmp_path / "notebook.py"
    program.write_text(script(notebook), encoding="utf8")
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, program.name],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {"own_csv", "own_module", "few_shot_pictures"}
