"""DSelect-k (Hazimeh et al., 2021, arXiv:2106.03760): f_t(x) = sum_i softmax(a)_i sum_e r(z_i)_e
f_e(x).

r(z)_e = prod_j S(z_j) where bit j of e is 1, 1 - S(z_j) where it is 0; S is a cubic step, exactly 0
below -gamma / 2 and exactly 1 above gamma / 2: each of the k selectors z_i ends on one expert,
written in binary.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
from raymtl.sharing.experts import Experts, mixture
from raymtl.types import Params, Task, UserError

Gates = Literal["per_input", "static"]


def smooth_step(z: Tensor, gamma: float) -> Tensor:
    """-2 (z/gamma)^3 + 3/2 z/gamma + 1/2 between -gamma / 2 and gamma / 2, 0 below, 1 above."""
    t = (z / gamma).clamp(-0.5, 0.5)
    return -2 * t**3 + 1.5 * t + 0.5


def selectors(z: Tensor, num_experts: int, gamma: float) -> Tensor:
    """Encodings [..., m], the lowest bit first -> weights [..., E] that sum to 1, where 2^(m-1) < E
    <= 2^m.
    """
    weights = z.new_ones(*z.shape[:-1], 1)
    for bit in smooth_step(z, gamma).unbind(-1):
        weights = torch.cat([weights * (1 - bit)[..., None], weights * bit[..., None]], -1)
    num_codes = weights.shape[-1]
    if num_codes > num_experts:
        shift = num_experts - num_codes // 2
        weights = weights[..., :num_experts] + F.pad(weights[..., num_experts:], (shift, shift))
    return weights


class SelectorGate(nn.Module):
    """The k selectors of one task, as a linear map of the flattened input or as they are."""

    def __init__(
        self, input_shape: Sequence[int], num_experts: int, k: int, gamma: float, gates: Gates
    ) -> None:
        super().__init__()
        self.num_experts, self.k, self.gamma = num_experts, k, gamma
        num_bits = (num_experts - 1).bit_length()
        if gates == "per_input":
            inputs: tuple[int, ...] = (math.prod(input_shape),)
        else:
            inputs = ()
        # Close to the middle of the step, outside of which there is no gradient.
        self.codes = nn.Parameter(
            torch.empty(k, num_bits, *inputs).uniform_(-gamma / 100, gamma / 100)
        )
        self.scores = nn.Parameter(torch.empty(k, *inputs).uniform_(-0.05, 0.05))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """[N, ...] -> the weights [N, E], each row in the simplex, and what each selector chooses
        [N, k, E].
        """
        flat, codes, scores = inputs.flatten(1), self.codes, self.scores
        if codes.ndim == 3:
            z = torch.einsum("kmd,nd->nkm", codes, flat)
            logits = flat @ scores.T
        else:
            z = codes.expand(len(flat), -1, -1)
            logits = scores.expand(len(flat), -1)
        chosen = selectors(z, self.num_experts, self.gamma)
        return torch.einsum("nk,nke->ne", logits.softmax(-1), chosen), chosen


def entropy(selected: Tensor) -> Tensor:
    """Of selectors [N, k, E]: summed over k, a mean over N; 0 where each has one expert."""
    # Not p log p at 0, whose gradient is infinite where the step's own is 0.
    safe = torch.where(selected > 0, selected, 1.0)
    return -(safe * safe.log()).sum((1, 2)).mean()


class DSelectK(SharingArchitecture):
    """All tasks share the experts, and each task learns to select at most k of them.

    An expert is a whole encoder. All experts are computed; only their mixture is sparse. The term
    `entropy`, a sum over tasks and selectors and a mean over examples, makes each selector decide
    for one expert. It is an auxiliary term if the gates read the flattened input, and a penalty if
    they are static.

    Deviation from the paper: if the number of experts is no power of two, some binary codes belong
    to no expert. Such a code stands for the expert whose code has the highest bit cleared. So the
    weights always sum to 1, and the paper's regulariser against such codes is not needed.
    """

    def __init__(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], spec: "DSelectKSpec"
    ) -> None:
        super().__init__(tasks, encoders[0].shapes[-1])
        self.experts = Experts(encoders)
        self.strength, self.gamma, self.static = spec.entropy, spec.gamma, spec.gates == "static"
        shape = encoders[0].shapes[0]
        self.gates = nn.ModuleDict(
            {
                name: SelectorGate(shape, len(encoders), spec.k, spec.gamma, spec.gates)
                for name in self.task_names
            }
        )

    @property
    def shared(self) -> frozenset[str]:
        return self._names("experts")

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        experts = self.experts(inputs)
        return {name: mixture(self.gates[name](inputs)[0], experts) for name in tasks}

    def auxiliary(self, inputs: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.static:
            return {}
        if isinstance(inputs, Tensor):
            inputs = dict.fromkeys(self.task_names, inputs)
        entropies = [entropy(self.gates[name](x)[1]) for name, x in inputs.items()]
        return {"entropy": self.strength * torch.stack(entropies).sum()}

    def penalty(self, params: Params) -> Tensor:
        total = super().penalty(params)
        if self.static:
            for name in self.task_names:
                chosen = selectors(params[f"gates.{name}.codes"], len(self.experts), self.gamma)
                total = total + self.strength * entropy(chosen[None])
        return total


class DSelectKSpec(SharingSpecBase):
    """All tasks share the experts, and each selects at most `k` of them by a smooth gate that
    becomes sparse.

    `gates` decide for each input or once for all; `gamma` is the width of the step; `entropy` is
    the weight of the term that makes the selectors decide.

    Example: `sharing: {name: dselect_k, num_experts: 8, k: 2}`
    """

    name: Literal["dselect_k"] = "dselect_k"
    helps: ClassVar[str] = "experts should be few in use: sparse, for a search or for serving"
    num_experts: PositiveInt = 4
    k: PositiveInt = 2
    gates: Gates = "per_input"
    gamma: PositiveFloat = 1.0
    entropy: NonNegativeFloat = 0.01

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.k > self.num_experts:
            raise UserError(
                f"sharing.k: expected at most the {self.num_experts} experts of "
                f"sharing.num_experts, got {self.k}. Lower sharing.k or raise sharing.num_experts."
            )
        return self

    def num_encoders(self, num_tasks: int) -> int:
        return self.num_experts

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> DSelectK:
        return DSelectK(tasks, encoders, self)
