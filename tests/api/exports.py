"""Models to export, and what an exported file says, read by torch and by ONNX Runtime alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raymtl.api.exporting.files import CHECKED, Format, write
from raymtl.api.exporting.graph import check_exportable, trace
from raymtl.api.exporting.outputs import output_of
from raymtl.api.model import Model
from raymtl.config import Experiment
from raymtl.prediction.trained import Trained
from raymtl.types import UserError
from tests.conftest import experiment, perturbed

CLOSE = 1e-5
FORMATS: tuple[Format, ...] = ("torch", "onnx")


def model_of(chosen: Experiment) -> Model:
    """Without training, and with no parameter where it starts."""
    algorithm = chosen.build()
    return Model(Trained(chosen, algorithm, perturbed(algorithm)))


def outputs_of(file: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the file computes."""
    if file.suffix == ".pt2":
        module = torch.export.load(file).module()
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        with torch.no_grad():
            return {name: value.numpy() for name, value in module(**tensors).items()}
    onnxruntime: Any = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def assert_alike(file: Path, model: Model, read: Tensor, inputs: dict[str, np.ndarray]) -> None:
    """The file says of `inputs` what the model says of what it reads instead, `read`."""
    found = outputs_of(file, inputs)
    with torch.no_grad():
        outputs, decided = model(read), model.predict(read)
    assert list(found) == [task.name for task in model.tasks]
    for task in model.tasks:
        expected = output_of(task, outputs[task.name]).numpy()
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found[task.name], expected, rtol=0, atol=CLOSE * scale)
        said = decided[task.name].numpy()
        if task.kind.has_class_targets:
            np.testing.assert_array_equal(found[task.name].argmax(1), said)
        else:
            np.testing.assert_allclose(found[task.name], said, rtol=0, atol=CLOSE * scale)


def digits(encoder: str, sharing: str, folder: Path) -> Experiment:
    """Pictures of digits, on a network that fits them."""
    values: dict[str, Any] = {"encoder__name": encoder, "sharing__name": sharing}
    if encoder == "timm":
        values |= {"encoder__model": "test_resnet", "encoder__weights": timm_weights(folder)}
        values |= {"encoder__size": 32}
    if encoder == "torchvision":
        values |= {"encoder__model": "regnet_y_400mf", "encoder__size": 32}
        values |= {"encoder__weights": torchvision_weights(folder)}
    try:
        return plain(values)
    except UserError:
        return plain({**values, "data__tasks": ["left", "right"]})


def plain(values: dict[str, Any]) -> Experiment:
    if values["encoder__name"] == "mlp":
        return experiment(**values)
    dotted = {key.replace("__", "."): value for key, value in values.items()}
    return Experiment().override(dotted).resolve()


def timm_weights(folder: Path) -> str:
    timm: Any = pytest.importorskip("timm")
    return saved(timm.create_model("test_resnet", num_classes=0), folder / "timm.safetensors")


def torchvision_weights(folder: Path) -> str:
    models: Any = pytest.importorskip("torchvision.models")
    return saved(models.regnet_y_400mf(), folder / "torchvision.safetensors")


def saved(network: torch.nn.Module, path: Path) -> str:
    from raymtl.storage import formats

    if not path.exists():
        formats.save_params(path, network.state_dict())
    return str(path)


def assert_exports(chosen: Experiment, folder: Path, formats: tuple[Format, ...]) -> None:
    """Each format predicts as the model does, of any number of examples."""
    model = model_of(chosen)
    traced = trace(model, check_exportable(model))
    for to in formats:
        write(traced, to, folder)
        for number in CHECKED:
            inputs = traced.inputs.examples(number, seed=7)
            (read,) = inputs.values()
            arrays = {name: value.numpy() for name, value in inputs.items()}
            (file,) = folder.glob("model.pt2" if to == "torch" else "model.onnx")
            assert_alike(file, model, read, arrays)
