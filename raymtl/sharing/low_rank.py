"""Low-rank sharing (GO-MTL: Kumar & Daumé, 2012, arXiv:1206.6417; deep: Yang & Hospedales, 2016,
arXiv:1605.06391).

W = L S, the stacked weights of all tasks [numel, K] from a basis L [numel, k] that they share and k
coefficients S_t of each: W_t = sum_j S_jt L_j; penalty mu |S|_1 + lambda |L|_F^2. As a tensor [out,
in, K]: W_t = U_out (sum_j S_jt G_j) U_in^T.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call

from raymtl.encoders import Encoder, lr_scales
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
from raymtl.types import Params, Task

# The initial coefficients are of unit length for weights, and of sum 1 for parameters of one
# dimension.
NORM_OF_WEIGHTS, NORM_OF_VECTORS = 2.0, 1.0


class Matrix(nn.Module):
    """A basis of k tensors of the same shape, which are k ordinary initial values: [k, *shape]."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.basis = nn.Parameter(values.clone())

    def forward(self, coefficients: Tensor) -> Tensor:
        """[k] -> [*shape]."""
        return torch.einsum("k,k...->...", coefficients, self.basis)


class Tucker(nn.Module):
    """The same with each tensor of the basis between two factors: [out, r_out] [k, r_out, r_in,
    ...] [in, r_in]^T.

    `kept` of the outputs and of the inputs remain as r_out and r_in; the places of a convolution's
    kernel stay as they are. The factors start orthonormal, and the core as the projection of k
    ordinary initial values, scaled to their mean square.
    """

    def __init__(self, values: Tensor, kept: float) -> None:
        super().__init__()
        sizes = values.shape[1:3]
        ranks = [math.ceil(kept * size) for size in sizes]
        outputs, inputs = (
            torch.linalg.qr(torch.randn(size, rank).to(values))[0]
            for size, rank in zip(sizes, ranks, strict=True)
        )
        lost = math.prod(sizes) / math.prod(ranks)
        self.outputs, self.inputs = nn.Parameter(outputs), nn.Parameter(inputs)
        self.core = nn.Parameter(
            math.sqrt(lost) * torch.einsum("or,koi...,ic->krc...", outputs, values, inputs)
        )

    def forward(self, coefficients: Tensor) -> Tensor:
        """[k] -> [*shape]."""
        core = torch.einsum("k,k...->...", coefficients, self.core)
        return torch.einsum("or,rc...,ic->oi...", self.outputs, core, self.inputs)


class LowRank(SharingArchitecture):
    """Each task's encoder is a linear combination of k shared encoders, parameter by parameter.

    `factors.PARAMETER` are the shared tensors. `coefficients.TASK` [number of parameters, k] belong
    to a task, and its encoder is computed from them when it is needed. A parameter of one
    dimension, such as a bias, is always factorised as a matrix. The initial coefficients of a task
    are random and positive. For weights they have unit length, so that the weights have an ordinary
    scale. For parameters of one dimension they sum to 1, so that the scales of a normalisation
    start at 1. With one task this is an independent network with ordinary initial values. Where the
    encoder is pre-trained all coefficients of a parameter sum to 1, so that every task starts with
    it.

    The penalty is mu times the sum of the absolute coefficients (its gradient at 0 is 0, a
    subgradient) plus lambda times the sum of squares of all factors.

    Deviations from the papers: factors are not initialised from networks trained task by task;
    gradient steps move both parts at once instead of solving for them in turns.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoders: Sequence[Encoder],
        form: Literal["matrix", "tensor"],
        kept: float,
        sparsity: float,
        decay: float,
    ) -> None:
        super().__init__(tasks, encoders[0].shapes[-1])
        self.sparsity, self.decay = sparsity, decay
        # In a tuple it is no submodule, and on the meta device it has no values that could enter a
        # prediction.
        self._template = (deepcopy(encoders[0]).to("meta"),)
        self._template_names = tuple(name for name, _ in encoders[0].named_parameters())
        self._scales = {f"factors.{_key(name)}.": s for name, s in lr_scales(encoders[0]).items()}
        self._constant_names = tuple(name for name, _ in encoders[0].named_buffers())
        for name, value in encoders[0].named_buffers():
            self.register_buffer(f"constant_{_key(name)}", value)
        norm_of_weights = NORM_OF_WEIGHTS
        if encoders[0].is_pretrained:
            norm_of_weights = NORM_OF_VECTORS
        self.factors = nn.ModuleDict()
        norms = []
        for name in self._template_names:
            values = torch.stack([encoder.get_parameter(name).detach() for encoder in encoders])
            is_weight = values.ndim > 2
            if is_weight and form == "tensor":
                self.factors[_key(name)] = Tucker(values, kept)
            else:
                self.factors[_key(name)] = Matrix(values)
            norms.append(norm_of_weights if is_weight else NORM_OF_VECTORS)
        self.coefficients = nn.ParameterDict(
            {name: nn.Parameter(_random_rows(norms, len(encoders))) for name in self.task_names}
        )

    @property
    def shared(self) -> frozenset[str]:
        return self._names("factors")

    def encoder_params(self, task: str) -> dict[str, Tensor]:
        """The parameters of a task's encoder, computed from the shared tensors."""
        rows = self.coefficients[task].unbind(0)
        return {
            name: self.factors[_key(name)](row)
            for name, row in zip(self._template_names, rows, strict=True)
        }

    def learning_rate_scales(self) -> Mapping[str, float]:
        scales = dict(super().learning_rate_scales())
        for name in scales:
            for start, scale in self._scales.items():
                if name.startswith(start):
                    scales[name] = scale
        return scales

    def prediction_modules(self) -> Iterator[nn.Module]:
        yield from super().prediction_modules()
        yield from self._template[0].modules()

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        (template,) = self._template
        constants = {n: self.get_buffer(f"constant_{_key(n)}") for n in self._constant_names}
        return {
            name: functional_call(template, {**constants, **self.encoder_params(name)}, (inputs,))
            for name in tasks
        }

    def penalty(self, params: Params) -> Tensor:
        coefficients = [
            value.abs().sum() for name, value in params.items() if name.startswith("coefficients.")
        ]
        factors = [
            value.square().sum() for name, value in params.items() if name.startswith("factors.")
        ]
        return (
            self.sparsity * torch.stack(coefficients).sum()
            + self.decay * torch.stack(factors).sum()
        )


class LowRankSpec(SharingSpecBase):
    """Each task's encoder is a combination of `rank` encoders that all share, parameter by
    parameter.

    A `rank` beyond the number of tasks adds nothing and is reduced to that number. `form: tensor`
    also factorises the outputs and the inputs of every weight, and keeps the share `kept` of each.
    `sparsity` is mu, the penalty on the coefficients. `decay` is lambda, the penalty on the shared
    factors.

    Example: `sharing: {name: low_rank, rank: 2, form: tensor}`
    """

    name: Literal["low_rank"] = "low_rank"
    helps: ClassVar[str] = "many tasks that are mixtures of a few"
    rank: PositiveInt = 2
    form: Literal["matrix", "tensor"] = "matrix"
    kept: Annotated[float, Field(gt=0, le=1)] = 0.5
    sparsity: NonNegativeFloat = 1e-5
    decay: NonNegativeFloat = 1e-5

    def check(self, tasks: Sequence[Task], encoder: Encoder) -> tuple[str, str] | None:
        if encoder.is_pretrained and self.form == "tensor":
            return (
                "form",
                "expected matrix with pre-trained weights, of which the random factors of a tensor "
                "leave nothing, got tensor. Choose sharing.form: matrix.",
            )
        if not list(encoder.parameters()):
            return (
                "name",
                "low_rank combines parameters of the encoder, and all of its stages are frozen. "
                "Lower encoder.frozen_stages, or choose sharing.name: hard.",
            )
        return super().check(tasks, encoder)

    def num_encoders(self, num_tasks: int) -> int:
        return min(self.rank, num_tasks)

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> LowRank:
        return LowRank(tasks, encoders, self.form, self.kept, self.sparsity, self.decay)


def _key(parameter: str) -> str:
    return parameter.replace(".", "_")


def _random_rows(norms: Sequence[float], length: int) -> Tensor:
    """Rows of random positive numbers, the i-th of unit length in the norm of order norms[i]."""
    return torch.stack(
        [nn.functional.normalize(torch.rand(length), p=norm, dim=0) for norm in norms]
    )
