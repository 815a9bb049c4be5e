"""Loads the network that `raymtl adapt --transfer` wrote."""

from pathlib import Path

import torch
import yaml
from pydantic import ValidationError

from raymtl import config
from raymtl.adaptation.transfer import (
    Network,
    TargetTransfer,
    Teacher,
    Trunk,
    load_transfer,
    named,
)
from raymtl.adaptation.transfer.network import headed
from raymtl.features.network import load_network as load_frozen
from raymtl.features.network import read_shape
from raymtl.storage import formats
from raymtl.types import Task, UserError


def load_network(folder: Path) -> tuple[Network, Task]:
    """The network in a folder, and its task. Raises UserError for what is damaged."""
    experiment = config.load(folder / "config.yaml")
    try:
        saved = yaml.safe_load((folder / "transfer.yaml").read_text(encoding="utf8"))
        transfer = load_transfer(saved["transfer"])
        reads = str(saved["reads"])
    except (OSError, yaml.YAMLError, ValidationError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder}: expected what `raymtl adapt --transfer` wrote, got another ({reason})."
        ) from None
    described = formats.read_json(folder / "scores.json")["task"]
    task = transfer.task.task_kind.restore(transfer.task, described)
    shape = read_shape(experiment)
    teacher = Teacher(Trunk(experiment.build(pretrained=False).model, reads), shape)
    if isinstance(transfer, TargetTransfer):
        body = transfer.network(teacher, task).body
    else:
        body = teacher.body
    network = headed(body, task, shape, 0)
    params = formats.load_params(folder / "model.safetensors", named(network, task.name))
    with torch.no_grad():
        for key, value in named(network, task.name).items():
            value.copy_(params[key])
    network.frozen = load_frozen(experiment, folder)
    return network, task
