"""The low-rank adapters of a trained model, for peft."""

from pathlib import Path

from raymtl import run_folder
from raymtl.api.checks import Place
from raymtl.api.model import Model, load_model
from raymtl.sharing.lora import LoRA
from raymtl.sharing.peft_format import check_exportable, network_values, peft_adapter
from raymtl.storage import formats
from raymtl.types import UserError


def export_adapters(model: Model | Place, folder: Place) -> Path:
    """Writes the adapters of `sharing: lora` in peft's format (docs/encoders.md).

    Each task has a folder of its name with adapter_config.json and adapter_model.safetensors.
    `network.safetensors` has the values of the trunk that they belong to.

    Args:
        model: a model, or what `load_model` takes.
        folder: to be made; where it exists, NAME-2 and so on is.

    Returns:
        The folder that was made.

    Raises:
        UserError: for a model that has no such adapters, or whose network peft cannot have.

    Example:
        >>> raymtl.export_adapters("runs/lora", "adapters")
        >>> peft.PeftModel.from_pretrained(network, "adapters/left")
    """
    if not isinstance(model, Model):
        model = load_model(model)
    lora = model.model
    if not isinstance(lora, LoRA):
        raise UserError(
            f"sharing.name: expected lora, which alone has adapters, got "
            f"{getattr(model.experiment.sharing, 'name', 'another one')}. Train a model with it."
        )
    check_exportable(lora)
    path = Path(folder).absolute()
    return run_folder.publish_folder(path.parent, path.name, lambda aside: _write(lora, aside))


def _write(model: LoRA, folder: Path) -> None:
    formats.save_params(folder / "network.safetensors", network_values(model))
    for task in model.task_names:
        adapter = peft_adapter(model, task)
        (folder / task).mkdir()
        formats.write_json(folder / task / "adapter_config.json", adapter.config)
        formats.save_params(folder / task / "adapter_model.safetensors", adapter.tensors)
