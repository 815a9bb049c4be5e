"""Training imports no compiler of torch, and torch.func computes the same without it."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from raymtl.internals.torch import spare_dynamo

TRAIN = """
import sys
from pathlib import Path
from raymtl.config import load
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop

sets = {"train.steps": 2, "train.eval_every": 2, "train.meta_batch": 2, "tune.asha.grace": 1}
sets |= {"train.task_axis": "vmap", "train.optimizer": sys.argv[2]}
experiment = load(Path("tune_configs/sinusoid.yaml"), sets)
arrays = experiment.data.load()
context = TrainContext(lambda metrics: None, lambda row: None)
train_loop(experiment, arrays, local_batches(experiment, arrays), context, Path(sys.argv[1]))
print(*sorted({"torch._dynamo", "sympy", "sklearn"} & set(sys.modules)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_imports_no_compiler(optimizer: str, tmp_path: Path) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path), optimizer],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert loaded.stdout.split() == []


def curvature(x: Tensor) -> Tensor:
    """A gradient of a gradient, in which one of two inputs is not used."""

    def slope(both: dict[str, Tensor]) -> Tensor:
        gradients = grad(lambda values: (values["used"] ** 3).sum())(both)
        total: Tensor = (gradients["used"] ** 2).sum() + gradients["unused"].sum()
        return total

    gradient: Tensor = grad(slope)({"used": x, "unused": torch.ones_like(x)})["used"]
    return gradient


def pulled_back(x: Tensor) -> Tensor:
    """By vjp, of two outputs of which one is constant."""
    back = vjp(lambda value: (value.sin(), torch.ones_like(value)), x)[1]
    gradient: Tensor = back((x.cos(), x))[0]
    return gradient


@pytest.mark.parametrize("function", [curvature, pulled_back])
def test_gradients_are_those_of_torch(
    function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    spare_dynamo()
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    importlib.import_module("torch._dynamo")  # torch's own function is called from here on
    expected = vmap(function)(x)
    monkeypatch.delitem(sys.modules, "torch._dynamo")
    assert torch.equal(vmap(function)(x), expected)
