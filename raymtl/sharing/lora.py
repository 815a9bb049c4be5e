"""Low-rank adapters (LoRA: Hu et al., 2021, arXiv:2106.09685; of several tasks, MTL-LoRA: Yang et
al., 2024, arXiv:2410.09437).

W_t = W + (alpha / r) B_t A, with a weight W and a matrix A [r, in] that all tasks share, and a
matrix B_t [out, r] of each task. B_t starts at 0, so that every task starts from W.
"""

import math
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.encoders import Encoder, freeze
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
from raymtl.storage.notes import Note
from raymtl.types import Task, matches_last

Layer = nn.Linear | nn.Conv2d

NAMED = 5
"""How many layers a note names."""

_task: ContextVar[str] = ContextVar("task")
"""The task whose B_t the layers add."""


class Factors(nn.Module):
    """A and the B_t of one layer; a rank that its weight cannot have is reduced.

    The weight of a convolution counts as a matrix with a row for each output channel. So A
    [r, in, height, width] is a convolution with r output channels, and B_t one of single pixels.
    """

    def __init__(self, layer: Layer, task_names: Sequence[str], rank: int, scale: float) -> None:
        super().__init__()
        num_outputs, *shape = layer.weight.shape
        rank = min(rank, num_outputs, math.prod(shape))
        self.scale = scale
        self.A = nn.Parameter(layer.weight.new_empty(rank, *shape))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        zeros = layer.weight.new_zeros(num_outputs, rank)
        self.B = nn.ParameterDict({name: nn.Parameter(zeros.clone()) for name in task_names})

    def forward(self, layer: Layer, x: Tensor, task: str) -> Tensor:
        """scale B_t A x, of the shape of the layer's output."""
        up = self.B[task]
        if isinstance(layer, nn.Linear):
            return self.scale * F.linear(F.linear(x, self.A), up)
        groups = layer.groups
        down: Tensor = self.A
        if groups > 1:
            down = torch.cat([down] * groups)
        low = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation, groups)
        return self.scale * F.conv2d(low, up[..., None, None], groups=groups)


def _add_change(layer: Layer, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A forward hook: the layer's own output and what the task at hand adds to it."""
    factors = layer.lora
    assert isinstance(factors, Factors)
    change: Tensor = factors(layer, inputs[0], _task.get())
    return output + change


class LoRA(SharingArchitecture):
    """All tasks share one trunk, and each changes its weights by matrices of low rank.

    A layer that is adapted adds (alpha / r) B_t A x to what it computes. Its matrices are called
    `lora.A` [r, in], shared by all tasks, and `lora.B.TASK` [out, r]. The groups of a convolution
    share A. Each task passes through the trunk by itself.

    Deviations from MTL-LoRA: B_t belongs to a task, where the paper averages several shared
    matrices B^i by weights of the task and has a transformation of each task between A and them;
    B_t can be any matrix that this product can be. Unless the trunk is frozen, its weights are
    trained too. A has the initial values that torch gives a layer.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        layers: Mapping[str, Layer],
        rank: int,
        alpha: float,
    ) -> None:
        """`layers` are those of the encoder that are adapted, by name; what is frozen stays so."""
        super().__init__(tasks, encoder.shapes[-1])
        self.encoders = nn.ModuleList([encoder])
        self.adapted = tuple(layers)
        """The names of the layers in the encoder."""
        for layer in layers.values():
            layer.lora = Factors(layer, self.task_names, rank, alpha / rank)
            layer.register_forward_hook(_add_change)

    @property
    def shared(self) -> frozenset[str]:
        return frozenset(name for name in self._names("encoders") if ".lora.B." not in name)

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        return {name: self._features_of(name, inputs) for name in tasks}

    def _features_of(self, task: str, inputs: Tensor) -> Tensor:
        before = _task.set(task)
        try:
            features: Tensor = self.encoders[0](inputs)
        finally:
            _task.reset(before)
        return features


class LoRASpec(SharingSpecBase):
    """All tasks share one trunk, and each changes its weights by matrices of low rank.

    `rank` is r; what a layer has no room for is reduced. `alpha` divided by `rank` scales the
    product B_t A. `modules` lists patterns for the names of the encoder's layers, such as
    `stages.1.*`; a later pattern that begins with `-` excludes what it matches. Layers are those of
    torch's Linear and Conv2d, no classes derived from them; a note names the others. With `frozen`
    the trunk keeps its initial values, which should be pre-trained ones then, and the matrices and
    the heads alone are trained. `learner.adapts: ["*lora*"]` makes the matrices the inner loop.

    Example: `sharing: {name: lora, rank: 4, modules: ["*", "-stages.0.*"]}`
    """

    name: Literal["lora"] = "lora"
    helps: ClassVar[str] = "tasks differ in little, or a pre-trained trunk is to stay as it is"
    rank: PositiveInt = 4
    alpha: PositiveFloat = 8.0
    frozen: bool = False
    modules: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)

    def check(self, tasks: Sequence[Task], encoder: Encoder) -> tuple[str, str] | None:
        layers = _layers(encoder)
        if not layers:
            return (
                "name",
                "expected an encoder with layers of Linear or Conv2d to adapt, got none. Choose "
                "another encoder or sharing.name: hard.",
            )
        derived = _derived_layers(encoder)
        for pattern in self.modules:
            names = [*layers]
            if pattern.startswith("-"):
                names += derived
            if not any(fnmatchcase(name, pattern.removeprefix("-")) for name in names):
                return "modules", (
                    f"expected patterns of the encoder's layers, and '{pattern}' matches none of "
                    f"{list(layers)}. Correct the pattern."
                )
        chosen = self._chosen(encoder)
        if not chosen:
            return "modules", (
                f"expected to choose a layer, got {list(self.modules)}, which leave out all. "
                "Remove one."
            )
        for name, layer in chosen.items():
            if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
                return "modules", (
                    f"expected convolutions that are padded with zeros, got {name} with "
                    f"{layer.padding_mode}. Add '-{name}'."
                )
        return super().check(tasks, encoder)

    def notes(self, encoder: Encoder) -> tuple[Note, ...]:
        """A note on layers that `modules` chooses and that are not adapted."""
        left_out = [
            f"{name} ({type(module).__name__})"
            for name, module in _derived_layers(encoder).items()
            if matches_last(name, self.modules)
        ]
        if not left_out:
            return ()
        names = ", ".join(left_out[:NAMED])
        if len(left_out) > NAMED:
            names += f" and {len(left_out) - NAMED} more"
        text = (
            "layers of classes derived from Linear or Conv2d have no adapters, since they may "
            f"compute something else: {names}; '-NAME' excludes one"
        )
        return (Note(place="sharing lora", text=text, key="sharing.modules"),)

    def num_encoders(self, num_tasks: int) -> int:
        return 1

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> LoRA:
        (encoder,) = encoders
        layers = self._chosen(encoder)
        if self.frozen:
            freeze(encoder)
        return LoRA(tasks, encoder, layers, self.rank, self.alpha)

    def _chosen(self, encoder: Encoder) -> dict[str, Layer]:
        """The layers that are adapted, by name."""
        layers = _layers(encoder)
        return {name: layer for name, layer in layers.items() if matches_last(name, self.modules)}


def _layers(encoder: Encoder) -> dict[str, Layer]:
    """The layers that can be adapted. A derived class may compute something else, or not be called
    at all.
    """
    return {name: module for name, module in encoder.named_modules() if _is_plain(module)}


def _derived_layers(encoder: Encoder) -> dict[str, Layer]:
    """The layers that cannot be adapted."""
    return {
        name: module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not _is_plain(module)
    }


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear or type(module) is nn.Conv2d
