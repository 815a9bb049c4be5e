"""Every encoder beside every sharing architecture, exported; and a fresh environment."""

import subprocess
import sys
from pathlib import Path

import pytest

import raymtl
from raymtl.api.exporting.files import Format
from raymtl.config import Experiment
from raymtl.schema.names import members
from raymtl.types import UserError
from tests.api.exports import FORMATS, assert_exports, digits, model_of
from tests.conftest import SHARING, experiment

pytest.importorskip("onnxruntime", reason="the extra raymtl[export] is not installed")

ENCODERS = tuple(members("encoder", Experiment))
ROOT = Path(__file__).parents[2]


PAIRS = [("mlp", sharing) for sharing in SHARING]
PAIRS += [(encoder, "hard") for encoder in ENCODERS if encoder != "mlp"]


@pytest.mark.slow
@pytest.mark.parametrize("encoder, sharing", PAIRS)
def test_every_encoder_and_every_sharing_is_predicted_as_the_model_does(
    encoder: str, sharing: str, tmp_path: Path
) -> None:
    """The two formats are written of one program."""
    assert_exports(digits(encoder, sharing, tmp_path), tmp_path, FORMATS)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_pair_is_predicted_as_the_model_does(
    encoder: str, to: Format, tmp_path: Path
) -> None:
    exported = 0
    for sharing in SHARING:
        try:
            chosen = digits(encoder, sharing, tmp_path)
        except UserError:  # what does not go together is told by tests/config
            continue
        assert_exports(chosen, tmp_path, (to,))
        exported += 1
    assert exported > len(SHARING) / 2


@pytest.mark.slow
def test_a_fresh_environment_loads_the_file(tmp_path: Path) -> None:
    """With ONNX Runtime and what it needs, and nothing else."""
    folder = raymtl.export(model_of(experiment()), "onnx", tmp_path / "out")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "-c",
        str(ROOT / "constraints.txt"),
        "onnxruntime",
    ]
    subprocess.run(install, check=True)
    code = (
        "import numpy, onnxruntime\n"
        'session = onnxruntime.InferenceSession("model.onnx")\n'
        'outputs = session.run(None, {"pictures": numpy.zeros((2, 1, 16, 16), "uint8")})\n'
        "print([len(output) for output in outputs])\n"
    )
    command = [python, "-I", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.stdout.strip() == "[2, 2, 2]", done.stderr
    for name in ("raymtl", "ray", "torch"):
        command = [python, "-I", "-c", f"import {name}"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 1
