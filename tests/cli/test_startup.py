"""Help, and mistakes that are found without a model, do not wait for torch to be imported."""

import json
import subprocess
import sys
from collections.abc import Mapping

import pytest

SLOW = ("torch", "scipy", "ray", "pyarrow", "pandas", "optuna", "plotly", "numpy")
RUN = f"""
import json, os, sys, tempfile
from raymtl.cli import main

def end(command, output):
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.argv[1:] = command.split()
    status = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code or 0
    print("status", status)
    print("imported", sorted(set({SLOW!r}) & set(sys.modules)), flush=True)
    os._exit(0)

ends = {{}}
for command in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile("w+") as output:
        process = os.fork()
        if process == 0:
            end(command, output)
        os.waitpid(process, 0)
        output.seek(0)
        ends[command] = output.read()
print(json.dumps(ends))
"""
"""Forks for each command, so that Python and the command line start once for all."""
COMMANDS = (
    "tune", "train", "evaluate", "adapt", "predict", "export", "trials", "methods", "schema", "report", "doctor",
    "data inspect", "data fetch", "cluster render", "cluster check",
)  # fmt: skip


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What every command of this file prints; the last two lines are the exit status and the imports."""
    folder = tmp_path_factory.mktemp("startup")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    commands = [f"{command} --help" for command in ("", *COMMANDS)]
    commands += [command for command, _ in MISTAKES]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    outputs: dict[str, str] = json.loads(done.stdout)
    return outputs


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_slow(printed: Mapping[str, str], command: str) -> None:
    assert printed[f"{command} --help"].endswith("\nstatus 0\nimported []\n")


FILES = {
    "tabs.yaml": "train:\n\tsteps: 1\n",
    "twice.yaml": "seed: 1\nseed: 2\n",
    "list.yaml": "[1, 2]\n",
    "good.yaml": "seed: 1\n",
    "key.yaml": "leaner: {name: maml}\n",
    "name.yaml": "learner: {name: mamll}\n",
    "type.yaml": "train: {steps: many}\n",
    "inner.yaml": "tune: {asha: {graze: 5}}\n",
    "data.yaml": "data: {name: files, path: gone.csv, tasks: {y: {column: y}}}\n",
    "norm.yaml": "encoder: {name: mlp, norm: bacth}\n",
    "stage.yaml": "stages: [{steps: 5, set: {learner.inner_lrr: 1}}]\n",
    "space.yaml": "search: {learner.inner_lrr: {uniform: [0, 1]}}\n",
    "form.yaml": "search: {learner.inner_lr: {unform: [0, 1]}}\n",
    "choice.yaml": "search: {learner.name: {choice: [maml, mamll]}}\n",
}
MISTAKES = [
    ("train missing.yaml", "missing.yaml: no such file"),
    ("tune tabs.yaml", "tabs.yaml:2: not valid YAML"),
    ("train twice.yaml", "twice.yaml:2: seed: the key stands twice"),
    ("data inspect list.yaml", "list.yaml: expected a mapping of keys"),
    ("train good.yaml --set seed", "--set: expected key=value"),
    ("train good.yaml --set seed=[", "--set seed: expected a YAML value"),
    ("train good.yaml --set train.stepz=3", "--set: train.stepz: unknown key"),
    ("train good.yaml --set train.steps=many", "--set: train.steps: expected a valid integer"),
    ("tune key.yaml", "key.yaml:1: leaner: unknown key. Did you mean learner?"),
    ("tune name.yaml", "name.yaml:1: learner.name: expected one of anil, boil,"),
    ("train type.yaml", "type.yaml:1: train.steps: expected a valid integer"),
    ("tune inner.yaml", "inner.yaml:1: tune.asha.graze: unknown key"),
    ("tune norm.yaml", "norm.yaml:1: encoder.norm: expected 'none', 'group'"),
    ("train data.yaml", "data.yaml:1: data.path: expected a file, a folder or a URL"),
    ("train stage.yaml", "stage.yaml:1: stages.0.set: learner.inner_lrr: unknown key"),
    ("tune space.yaml", "space.yaml:1: search.learner.inner_lrr: unknown key"),
    ("tune form.yaml", "search.learner.inner_lr: expected one of log_uniform, uniform"),
    ("tune choice.yaml", "could suggest learner.name=mamll, which cannot run"),
    ("data inspect key.yaml", "key.yaml:1: leaner: unknown key"),
    ("doctor --config key.yaml", "key.yaml:1: leaner: unknown key"),
    ("evaluate . --split train", "--split: expected val or test"),
    ("evaluate missing", "missing: expected a run folder"),
    ("adapt missing", "missing: expected a run folder"),
    ("adapt . --query q.csv", "--query: expected --support"),
    ("adapt . --set a=1", "--set: expected --transfer"),
    ("export missing --to torch", "missing: expected a run folder"),
    ("export . --to tensorflow", "--to: expected torch, onnx, mlflow or wandb, got 'tensorflow'"),
    (
        "export . --to torch --output good.yaml",
        "--output: expected a folder that is yet to be made",
    ),
    ("trials missing", "missing: expected a run folder"),
    ("methods nope", "section: expected one of sharing, weighting, learner, mode, got 'nope'"),
    ("report missing", "missing: expected a run folder"),
    ("doctor --set a=1", "--set: expected --config"),
    ("doctor --config missing.yaml", "missing.yaml: no such file"),
    ("cluster render azure", "render: expected one of aws"),
    ("cluster render aws --set regoin=x", "Did you mean region"),
    ("cluster check missing.yaml", "missing.yaml: cannot be read"),
    ("cluster check tabs.yaml", "tabs.yaml: not valid YAML"),
]


@pytest.mark.parametrize("command, message", MISTAKES)
def test_mistake_imports_nothing_slow(
    printed: Mapping[str, str], command: str, message: str
) -> None:
    assert message in printed[command]
    assert printed[command].endswith("\nstatus 2\nimported []\n")
