"""A trained model as a file that needs no raymtl: `export`."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from raymtl import run_folder
from raymtl.api.checks import Place, check_export
from raymtl.api.exporting.card import write_card
from raymtl.api.exporting.files import Format, write
from raymtl.api.exporting.graph import check_exportable, trace
from raymtl.api.model import Model, load_model
from raymtl.api.run import Run
from raymtl.storage import formats
from raymtl.types import UserError

if TYPE_CHECKING:
    from raymtl.api.exporting.inputs import GraphInputs


def export(source: Model | Run | Place, to: str, output: Place | None = None) -> Path:
    """Writes a model with its preprocessing as a graph of tensors (docs/export.md).

    It is `raymtl export`. The folder has `model.pt2` or `model.onnx`, what its inputs and outputs
    are (`model.json`), and a model card (`README.md`).

    Args:
        source: a model; a run, whose best model is written; or a model folder, such as
            RUN/adapted/NAME.
        to: `torch` for torch.export, or `onnx`, which needs the extra `export`.
        output: the folder to make; RUN/exported/torch or RUN/exported/onnx by default, with -2 and
            so on behind it where that exists.

    Returns:
        The folder that was made.

    Raises:
        UserError: for a model that first has to be adapted, for inputs that no graph can read, and
            for a folder that exists or cannot be made.

    Example:
        >>> raymtl.export("runs/own-data", "onnx", "model")
        >>> onnxruntime.InferenceSession("model/model.onnx")
    """
    check_export(to, output)
    model, folder = _loaded(source)
    inputs = check_exportable(model)
    place = _place(folder, to, output)
    chosen = cast("Format", to)

    def fill(aside: Path) -> None:
        _write(model, inputs, chosen, aside, folder)

    return run_folder.publish_folder(place.parent, place.name, fill)


def _loaded(source: Model | Run | Place) -> tuple[Model, Path | None]:
    """The model and its folder. Raises UserError where there is none, or none yet."""
    if isinstance(source, Model):
        return source, None
    if isinstance(source, Run):
        folder = source.folder
    else:
        folder = run_folder.existing(Path(source))
    models = (folder / "best", folder)
    if not any((each / "model.safetensors").is_file() for each in models):
        raise UserError(
            f"{folder}: expected a run with a trained model, got one that has not come so far. "
            "Continue it with --resume."
        )
    return load_model(folder), folder


def _place(folder: Path | None, to: str, output: Place | None) -> Path:
    if output is not None:
        return Path(output).absolute()
    if folder is None:
        raise UserError(
            "output: expected the folder to make for a model that is in no run folder, got none. "
            "Give it."
        )
    return folder / "exported" / to


def _write(
    model: Model, inputs: "GraphInputs", to: Format, aside: Path, folder: Path | None
) -> None:
    traced = trace(model, inputs)
    difference = write(traced, to, aside)
    formats.write_json(aside / "model.json", traced.about)
    write_card(aside, to, traced, difference, folder)
