"""Folders of sentence-transformers: which modules stand in `modules.json`, and what they say.

Their own library imports whatever `modules.json` names. Here the modules that most models are made
of are built from their settings and tensors, and others are refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.encoders.texts.pooling import POOLINGS
from raymtl.types import UserError

MODULES = "modules.json"
PACKAGE = "sentence_transformers"
KNOWN = ("Transformer", "Pooling", "Dense", "Normalize")
ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "Tanh": nn.Tanh,
    "Identity": nn.Identity,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "Sigmoid": nn.Sigmoid,
}
OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""What the settings of a pooling were called before version 5.7."""


class Normalised(nn.Module):
    """Vectors [N, D] of length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)


class SentenceFolder(NamedTuple):
    """A transformer, and what is done with the vectors of its tokens."""

    transformer: Path
    poolings: tuple[str, ...] = ()
    """None where the folder says nothing of it."""
    layers: tuple[nn.Module, ...] = ()
    """Applied to the pooled vectors [N, D] one after the other."""
    max_tokens: int | None = None
    lower_case: bool = False
    prompt: str = ""
    """What stands before every text."""


class _Reader:
    """Reads the settings of a folder. `place` begins every error."""

    def __init__(self, folder: Path, place: str) -> None:
        self.folder = folder
        self.place = place

    def error(self, text: str) -> UserError:
        return UserError(f"{self.place}: {self.folder}: {text}")

    def settings(self, name: str) -> Any:
        """What a JSON file holds; an empty mapping where there is none."""
        path = self.folder / name
        if not path.is_file():
            return {}
        try:
            return json.loads(path.read_text("utf8"))
        except (OSError, ValueError) as error:
            raise self.error(
                f"{name}: expected JSON, got what cannot be read ({error}). Restore the file."
            ) from None


def read_sentence_folder(folder: Path, place: str) -> SentenceFolder:
    """What the folder says; one without `modules.json` is a transformer alone. Raises UserError."""
    reader = _Reader(folder, place)
    modules = reader.settings(MODULES)
    if not modules:
        return SentenceFolder(folder)
    kinds = [_kind(reader, module) for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise reader.error(
            f"{MODULES}: expected a Transformer and then a Pooling, got {', '.join(kinds)}. Take "
            "another model."
        )
    paths = [str(module.get("path", "")) for module in modules]
    layers = [_layer(reader, kind, path) for kind, path in zip(kinds[2:], paths[2:], strict=True)]
    of_transformer = reader.settings(f"{paths[0] or '.'}/sentence_bert_config.json")
    poolings = _poolings(reader, reader.settings(f"{paths[1]}/config.json"))
    return SentenceFolder(
        folder / paths[0],
        poolings,
        tuple(layers),
        of_transformer.get("max_seq_length"),
        bool(of_transformer.get("do_lower_case")),
        _prompt(reader),
    )


def _kind(reader: _Reader, module: Mapping[str, Any]) -> str:
    dotted = str(module.get("type"))
    package, _, kind = dotted.partition(".")[0], "", dotted.rpartition(".")[2]
    if package != PACKAGE or kind not in KNOWN:
        raise reader.error(
            f"{MODULES}: expected modules of {PACKAGE} among {', '.join(KNOWN)}, got '{dotted}', "
            "whose code is not run. Take another model."
        )
    return kind


def _poolings(reader: _Reader, settings: Mapping[str, Any]) -> tuple[str, ...]:
    given = settings.get("pooling_mode")
    if given is None:
        given = [new for old, new in OLD_POOLINGS.items() if settings.get(old)] or ["mean"]
    if isinstance(given, str):
        given = [given]
    unknown = [name for name in given if name not in POOLINGS]
    if unknown:
        raise reader.error(
            f"{MODULES}: expected a pooling among {', '.join(POOLINGS)}, got '{unknown[0]}'. Take "
            "another model."
        )
    return tuple(given)


def _prompt(reader: _Reader) -> str:
    """The prompt that stands before texts by default."""
    settings = reader.settings("config_sentence_transformers.json")
    name = settings.get("default_prompt_name")
    return str((settings.get("prompts") or {}).get(name, ""))


def _layer(reader: _Reader, kind: str, path: str) -> nn.Module:
    """A module that stands after the pooling. Raises UserError for one that is none there."""
    if kind == "Normalize":
        return Normalised()
    if kind != "Dense":
        raise reader.error(
            f"{MODULES}: expected Dense and Normalize after the pooling, got {kind}. Take another "
            "model."
        )
    settings = reader.settings(f"{path}/config.json")
    activation = str(settings.get("activation_function", "Tanh")).rpartition(".")[2]
    own_names = {settings.get(f"module_{end}_name") for end in ("input", "output")}
    if (
        settings.get("use_residual")
        or activation not in ACTIVATIONS
        or own_names - {None, "sentence_embedding"}
    ):
        raise reader.error(
            f"{path}: expected a plain layer with an activation among {', '.join(ACTIVATIONS)}, "
            f"got {settings}. Take another model."
        )
    return nn.Sequential(_linear(reader, path), ACTIVATIONS[activation]()).requires_grad_(False)


def _linear(reader: _Reader, path: str) -> nn.Linear:
    from safetensors.torch import load_file  # the core needs none

    file = reader.folder / path / "model.safetensors"
    try:
        entries = load_file(file)
        weight, bias = entries["linear.weight"], entries.get("linear.bias")
    except Exception as error:  # of files that are missing, damaged or of another layer
        raise reader.error(
            f"{path}: expected the weights of a layer in model.safetensors, got none "
            f"({str(error).strip().partition(chr(10))[0]}). Restore the file."
        ) from None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear
