"""Normalisation that is a function of parameters and examples alone: no running statistics.

Batch (Ioffe & Szegedy, 2015, arXiv:1502.03167): y = gamma (x - mean) / sqrt(var + eps) + beta, over
the examples and places of a channel. Group (Wu & He, 2018, arXiv:1803.08494) and layer: the same
over the channels of a group, or all, of one example. Per step (Antoniou et al., 2019,
arXiv:1810.09502): batch, with gamma_j and beta_j of their own for the parameters after j inner
steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, model_validator
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from raymtl.encoders.base import EncoderSpecBase
from raymtl.encoders.dropout import Dropout, Share
from raymtl.internals.torch import is_vmapped
from raymtl.schema.readers import not_running
from raymtl.types import UserError

Norm = Annotated[
    Literal["none", "group", "layer", "batch", "per_step"], BeforeValidator(not_running)
]
WITH_BATCH_STATISTICS = ("batch", "per_step")
EPS = 1e-5

_recording: ContextVar[list[Tensor] | None] = ContextVar("recording", default=None)
_given: ContextVar[Iterator[Tensor] | None] = ContextVar("given", default=None)
_step: ContextVar[int | Tensor] = ContextVar("step", default=0)


class BatchStatistics(nn.Module, ABC):
    """Normalises [N, C, ...] -> [N, C, ...] by the statistics of the examples that it is given.

    These are the support set's in an inner loop. Those of a query are judged by the support set's
    too: inside `statistics_of` a module takes the statistics that it had where they were recorded,
    so that what is predicted of an example does not depend on the others. A `transductive` one
    takes those of the examples at hand everywhere. Deviation from the paper: there are no running
    statistics. The variance is the mean square, without a correction.
    """

    def __init__(self, transductive: bool, eps: float = EPS) -> None:
        super().__init__()
        self.transductive, self.eps = transductive, eps

    @abstractmethod
    def affine(self) -> tuple[Tensor, Tensor]:
        """gamma and beta, [C] each."""

    def forward(self, x: Tensor) -> Tensor:
        if self.transductive:
            given = None
        else:
            given = _given.get()
        if given is not None:
            scale, shift = next(given).unbind()
        else:
            # In the parameters' precision: the squares of many half-precision numbers add up to
            # nothing exact.
            weight, bias = self.affine()
            x = x.to(weight.dtype)
            _refuse_single_values(x)
            recording = _recording.get()
            if self.transductive:
                recording = None
            # torch's own is faster, but under vmap its second derivative is wrong.
            if recording is None and not is_vmapped():
                return F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)
            mean, variance = _Moments.apply(x)
            scale = weight * (variance + self.eps).rsqrt()
            shift = bias - mean * scale
            if recording is not None:
                recording.append(torch.stack([scale, shift]))
        return torch.addcmul(_beside(shift, x), x, _beside(scale, x))


class BatchNorm(BatchStatistics):
    """With one gamma and beta [C]."""

    def __init__(self, channels: int, transductive: bool = False, eps: float = EPS) -> None:
        super().__init__(transductive, eps)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def affine(self) -> tuple[Tensor, Tensor]:
        return self.weight, self.bias


class PerStepNorm(BatchStatistics):
    """With a gamma and beta [C] for each number of inner steps taken, from 0 to `inner_steps`;
    beyond them the last.

    An inner step moves those that are in use, which the next step no longer is. Deviation from the
    paper: statistics are those of the examples at hand for every step, and none are kept from
    episode to episode.
    """

    def __init__(self, channels: int, inner_steps: int, transductive: bool = False) -> None:
        super().__init__(transductive)
        # Not one tensor of all: what asks for parameters of one dimension is to find scales and
        # shifts.
        self.weights = nn.ParameterList(torch.ones(channels) for _ in range(inner_steps + 1))
        self.biases = nn.ParameterList(torch.zeros(channels) for _ in range(inner_steps + 1))

    def affine(self) -> tuple[Tensor, Tensor]:
        step, last = _step.get(), len(self.weights) - 1
        if isinstance(step, int):
            return self.weights[min(step, last)], self.biases[min(step, last)]
        # As a tensor it is from an adapted model's file, or one for each episode under vmap.
        row = step.clamp(max=last).view(1)
        weight, bias = (
            torch.stack(list(each)).index_select(0, row)[0] for each in (self.weights, self.biases)
        )
        return weight, bias


class _Moments(Function):
    """x [N, C, ...] -> mean and variance [C]; by hand, which keeps one copy of x where autograd
    would keep two.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(_places(x))
        return mean, (x - _beside(mean, x)).square().mean(_places(x))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        number = x.numel() / x.shape[1]
        slope = 2 * of_variance / number
        return torch.addcmul(_beside(of_mean / number - slope * mean, x), x, _beside(slope, x))


def _refuse_single_values(x: Tensor) -> None:
    """Raises UserError where a channel has a single value, whose variance says nothing."""
    if x.numel() < 2 * x.shape[1]:
        raise UserError(
            "encoder.norm: batch statistics take at least two values of a channel, got one "
            "example of one place. Give more examples (data.shots), or choose encoder.norm: "
            "layer."
        )


def _places(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _beside(values: Tensor, x: Tensor) -> Tensor:
    """[C] -> [C, 1, ...], which goes with x [N, C, ...]."""
    return values.view(-1, *[1] * (x.ndim - 2))


@contextmanager
def recorded_statistics() -> Iterator[list[Tensor]]:
    """What every batch norm makes of what passes it inside: scale and shift [2, C], in the order of
    their calls.
    """
    maps: list[Tensor] = []
    token = _recording.set(maps)
    try:
        yield maps
    finally:
        _recording.reset(token)


@contextmanager
def statistics_of(maps: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the batch norms do what they did while `maps` was recorded, call by call."""
    # By the order of calls and not by module: one that several tasks share is called for each, with
    # other examples.
    remaining = iter(maps)
    token = _given.set(remaining)
    try:
        yield
    finally:
        _given.reset(token)
    if next(remaining, None) is not None:
        raise ValueError(
            f"expected as many batch norms as where the {len(maps)} statistics were recorded, got "
            "fewer."
        )


def refuse_running_statistics(modules: Iterable[nn.Module]) -> None:
    """Raises UserError where a module normalises by what it saw earlier, or by the queries without
    saying so.
    """
    for module in modules:
        if isinstance(module, _BatchNorm) or (
            isinstance(module, _InstanceNorm) and module.track_running_stats
        ):
            raise UserError(
                "encoder.norm: expected a model without running statistics, got a "
                f"{type(module).__name__}: they are no function of the parameters, so that no "
                "gradient is right with them, and they carry each support set into the queries of "
                "the next. Use raymtl.encoders.BatchNorm, or nn.GroupNorm."
            )


@contextmanager
def after_steps(steps: int | Tensor) -> Iterator[None]:
    """Inside, norms with per-step parameters use those after so many inner steps."""
    token = _step.set(steps)
    try:
        yield
    finally:
        _step.reset(token)


class NormedSpec(EncoderSpecBase):
    """What encoders with a normalisation have in common."""

    norm: Norm = "group"
    transductive: bool = False
    """Whether a query is normalised by the statistics of all queries, and not by those of the
    support set.
    """
    dropout: Share = 0.0
    """The share of each stage's outputs, or of its maps, that is dropped in training."""

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.transductive and self.norm not in WITH_BATCH_STATISTICS:
            raise UserError(
                "encoder.transductive: expected encoder.norm: "
                f"{' or '.join(WITH_BATCH_STATISTICS)}, whose statistics can be those of the "
                f"queries, got {self.norm}. Leave transductive out, or choose another norm."
            )
        return self

    @property
    def biased(self) -> bool:
        """Whether a layer before a normalisation has a bias; batch statistics take away what it
        adds.
        """
        return self.norm not in WITH_BATCH_STATISTICS

    @property
    def has_per_step_params(self) -> bool:
        """Whether the network after one inner step is another than after two."""
        return self.norm == "per_step"

    def dropouts(self) -> list[nn.Module]:
        """What drops outputs of a stage: one module, or none."""
        if not self.dropout:
            return []
        return [Dropout(self.dropout)]

    def norms(self, channels: int, groups: int, inner_steps: int) -> list[nn.Module]:
        """The normalisation of so many channels: one module, or none."""
        if self.norm == "none":
            return []
        if self.norm == "batch":
            return [BatchNorm(channels, self.transductive)]
        if self.norm == "per_step":
            return [PerStepNorm(channels, inner_steps, self.transductive)]
        if self.norm == "layer":
            return [nn.GroupNorm(1, channels)]
        if channels % groups:
            raise UserError(
                f"encoder.norm: group takes widths that are multiples of {groups}, got {channels}. "
                "Change the width, or choose encoder.norm: layer."
            )
        return [nn.GroupNorm(groups, channels)]
