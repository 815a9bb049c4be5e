"""The interface of all encoders: a sequence of stages."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from raymtl.types import Spec, UserError


class Stage(nn.Sequential):
    """A stage whose parameters have a learning rate of their own, `lr_scale` times the outer."""

    lr_scale: float = 1.0


class Encoder(nn.Module):
    """Applies its stages one after the other and flattens: [N, *input_shape] -> [N, out_features].

    Architectures that separate or mix tasks between layers iterate over `stages`. `shapes` holds
    the shape of one input and then that of each stage's output.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        input_shape: tuple[int, ...],
        shapes: Sequence[tuple[int, ...]] = (),
    ) -> None:
        """`shapes` are those of the stages' outputs; without them the stages are applied once."""
        super().__init__()
        self.has_stages = True
        """Whether architectures may separate or mix tasks between the stages."""
        self.stages = nn.ModuleList(stages)
        self.shapes = [tuple(input_shape), *shapes]
        self.out_features = math.prod(self.shapes[-1])
        if shapes:
            return
        with torch.no_grad():
            x = torch.zeros(2, *input_shape)  # two, for one has no statistics
            for stage in stages:
                x = stage(x)
                self.shapes.append(tuple(x.shape[1:]))
        self.out_features = x[0].numel()

    def forward(self, inputs: Tensor) -> Tensor:
        for stage in self.stages:
            inputs = stage(inputs)
        return inputs.flatten(1)

    @property
    def is_pretrained(self) -> bool:
        """Whether all copies start with the same values, which mean something."""
        return False


def lr_scales(module: nn.Module) -> dict[str, float]:
    """The factor of the outer learning rate of every parameter, as the stages within say it."""
    scales = {name: 1.0 for name, _ in module.named_parameters()}
    for prefix, stage in module.named_modules():
        if isinstance(stage, Stage):
            own = [name for name in scales if name.startswith(f"{prefix}.")]
            scales |= dict.fromkeys(own, stage.lr_scale)
    return scales


def freeze(module: nn.Module) -> None:
    """Makes constants of all parameters of a module: no loop moves them, and no gradient is taken.

    They become buffers of the same names, which a model's file has beside the parameters.
    """
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, value.detach().clone())


class EncoderSpecBase(Spec, ABC):
    """Hyperparameters of an encoder; `build` makes it."""

    section: ClassVar[str] = "encoder"

    @abstractmethod
    def build(self, input_shape: tuple[int, ...], inner_steps: int = 0) -> Encoder:
        """The encoder of inputs [N, *input_shape]; a norm may tell `inner_steps` apart."""

    def initialise(self, encoder: Encoder) -> None:
        """Gives an encoder that was built by this spec its pre-trained values, where it has such.

        Raises UserError.
        """

    @property
    def weights_source(self) -> str:
        """Where its pre-trained values come from; `none` where it has none."""
        return "none"

    @property
    def is_resolved(self) -> bool:
        """Whether everything is known that files decide."""
        return True

    def resolve(self, input_shape: tuple[int, ...]) -> Self:
        """The same encoder with what its files hold, which are read. Raises UserError."""
        return self

    @property
    def has_per_step_params(self) -> bool:
        """Whether the network after one inner step is another than after two."""
        return False


def from_module(
    module: nn.Module, input_shape: tuple[int, ...], stages: Sequence[str] = ()
) -> Encoder:
    """An encoder of any module [N, *input_shape] -> [N, ...].

    Args:
        module: the network. It has no running statistics, and computes in the default precision.
        input_shape: of one input.
        stages: the names of its submodules that, one after the other, are the module. Without them
            the encoder has one stage, and architectures that separate or mix tasks between stages
            refuse it.

    Raises:
        UserError: for a name that is no submodule, and where the stages are not the module.

    Example:
        >>> class Mine(raymtl.EncoderSpecBase):
        ...     name: Literal["mine"] = "mine"
        ...
        ...     def build(self, input_shape, inner_steps=0):
        ...         return raymtl.from_module(MyNetwork(), input_shape, ["stem", "body"])
    """
    if not stages:
        encoder = Encoder([module], input_shape)
        encoder.has_stages = False
        return encoder
    known = dict(module.named_modules())
    for name in stages:
        if name not in known or not name:
            children = [child for child, _ in module.named_children()]
            raise UserError(
                f"encoder: stages: expected submodules of {type(module).__name__}, such as "
                f"{children}, got '{name}'. Correct the name."
            )
    encoder = Encoder([known[name] for name in stages], input_shape)
    _check_is_module(encoder, module, input_shape, stages)
    return encoder


def _check_is_module(
    encoder: Encoder, module: nn.Module, input_shape: tuple[int, ...], stages: Sequence[str]
) -> None:
    """Raises UserError where the stages do not compute what the module does."""
    inputs = torch.linspace(-1, 1, 2 * math.prod(input_shape)).reshape(2, *input_shape)
    if inputs.is_meta:
        return
    training = module.training
    module.eval()  # dropout is no difference
    with torch.no_grad():
        by_stages, whole = encoder(inputs), module(inputs).flatten(1)
    module.train(training)
    if by_stages.shape != whole.shape or not torch.allclose(by_stages, whole):
        raise UserError(
            f"encoder: stages: expected submodules that are {type(module).__name__} one after the "
            f"other, got {list(stages)}, which compute something else. Name all of them, or none."
        )
