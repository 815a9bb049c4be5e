"""Writes the graph of a model in either format, and compares what the file computes with it."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from raymtl.api.exporting.graph import Traced, reason
from raymtl.storage import strict_json
from raymtl.types import UserError

Format = Literal["torch", "onnx"]
NAMES: Mapping[Format, str] = {"torch": "model.pt2", "onnx": "model.onnx"}
KEY = "raymtl"
"""Of the description in the metadata of an ONNX file."""
EXTRA_FILE = "raymtl.json"
"""The description in the extra files of a .pt2."""
LARGEST_DIFFERENCE = 1e-3
"""Between the model and its file, as a share of the largest output; 1e-6 is usual."""
CHECKED = (1, 5)
"""Examples in the batches by which the file is compared."""
Call = Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]


def write(traced: Traced, to: Format, folder: Path) -> float:
    """Writes the file, reads it again and returns by how much it differs from the model at most.

    Raises UserError where it cannot be written in this format, or computes something else.
    """
    path = folder / NAMES[to]
    if to == "torch":
        text = strict_json.dumps(dict(traced.about))
        with _quiet():  # it warns of weights in channels_last, which it writes all the same
            torch.export.save(traced.program, path, extra_files={EXTRA_FILE: text})
        call = _torch_call(path)
    else:
        _write_onnx(traced, path)
        call = _onnx_call(path)
    return _difference(traced, call)


def _write_onnx(traced: Traced, path: Path) -> None:
    both = set(traced.input_names) & set(traced.output_names)
    if both:
        raise UserError(
            f"--to onnx: expected tasks that have other names than the inputs of the graph, got "
            f"'{min(both)}'. Use --to torch."
        )
    try:
        with _quiet(), torch.no_grad():
            onnx = torch.onnx.export(
                traced.program,
                input_names=traced.input_names,
                output_names=traced.output_names,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # of any layer of any model
        raise UserError(
            "--to: expected a model that can be written as ONNX, got one that cannot "
            f"({reason(error)}). Use --to torch."
        ) from None
    assert onnx is not None
    onnx.model.metadata_props[KEY] = strict_json.dumps(dict(traced.about))
    onnx.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about its own working."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _torch_call(path: Path) -> Call:
    module = torch.export.load(path).module()

    def call(inputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
        with torch.no_grad():
            outputs = module(**tensors)
        return {name: value.numpy() for name, value in outputs.items()}

    return call


def _onnx_call(path: Path) -> Call:
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def call(inputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return dict(zip(names, session.run(None, inputs), strict=True))

    return call


def _difference(traced: Traced, call: Call) -> float:
    """The largest difference on some examples. Raises UserError where it is no rounding."""
    largest = 0.0
    for number in CHECKED:
        examples = traced.inputs.examples(number, seed=number)
        with torch.no_grad():
            expected = traced.graph(**examples)
        found = call({name: value.numpy() for name, value in examples.items()})
        for name, value in expected.items():
            truth = value.double().numpy()
            difference = float(np.abs(found[name] - truth).max(initial=0))
            if not difference <= LARGEST_DIFFERENCE * max(1.0, float(np.abs(truth).max(initial=0))):
                raise UserError(
                    f"raymtl export: expected a file that computes what the model does, got "
                    f"'{name}' with a difference of {difference:.2g}. Use the other --to, and "
                    "report it."
                )
            largest = max(largest, difference)
    return largest
