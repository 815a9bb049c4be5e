"""Help, and mistakes that are found without a model, do not wait for torch to be imported."""

import subprocess
import sys
from pathlib import Path

import pytest

SLOW = ("torch", "scipy", "ray", "pyarrow", "pandas", "optuna", "plotly", "numpy")
RUN = f"""
import sys
from raymtl.cli import main
try:
    main()
except SystemExit as ended:
    print("status", ended.code or 0)
print("imported", sorted(set({SLOW!r}) & set(sys.modules)))
"""
COMMANDS = (
    "tune", "train", "evaluate", "adapt", "trials", "methods", "report", "doctor",
    "data inspect", "data fetch", "cluster render", "cluster check",
)  # fmt: skip


def run(folder: Path, *args: str) -> tuple[str, str]:
    """The last two lines that are printed, of the exit status and the imports; standard error."""
    command = [sys.executable, "-c", RUN, *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return "\n".join(done.stdout.splitlines()[-2:]), done.stderr


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_slow(tmp_path: Path, command: str) -> None:
    ended, _ = run(tmp_path, *command.split(), "--help")
    assert ended == "status 0\nimported []"


FILES = {
    "tabs.yaml": "train:\n\tsteps: 1\n",
    "twice.yaml": "seed: 1\nseed: 2\n",
    "list.yaml": "[1, 2]\n",
    "good.yaml": "seed: 1\n",
}
MISTAKES = [
    ("train missing.yaml", "missing.yaml: no such file"),
    ("tune tabs.yaml", "tabs.yaml:2: not valid YAML"),
    ("train twice.yaml", "twice.yaml:2: seed: the key stands twice"),
    ("data inspect list.yaml", "list.yaml: expected a mapping of keys"),
    ("train good.yaml --set seed", "--set: expected key=value"),
    ("train good.yaml --set seed=[", "--set seed: expected a YAML value"),
    ("evaluate . --split train", "--split: expected val or test"),
    ("evaluate missing", "missing: expected a run folder"),
    ("adapt missing", "missing: expected a run folder"),
    ("adapt . --query q.csv", "--query: expected --support"),
    ("adapt . --set a=1", "--set: expected --transfer"),
    ("trials missing", "missing: expected a run folder"),
    ("report missing", "missing: expected a run folder"),
    ("doctor --set a=1", "--set: expected --config"),
    ("doctor --config missing.yaml", "missing.yaml: no such file"),
    ("cluster render azure", "render: expected one of aws"),
    ("cluster render aws --set regoin=x", "Did you mean region"),
    ("cluster check missing.yaml", "missing.yaml: cannot be read"),
    ("cluster check tabs.yaml", "tabs.yaml: not valid YAML"),
]


@pytest.mark.parametrize("command, message", MISTAKES)
def test_mistake_imports_nothing_slow(tmp_path: Path, command: str, message: str) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    ended, error = run(tmp_path, *command.split())
    assert message in error
    assert ended == "status 2\nimported []"
