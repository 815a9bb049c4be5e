"""Adversarial shared-private learning (Liu et al., 2017, arXiv:1704.05742): L + lambda L_adv +
gamma L_diff.

L_adv = min over the shared encoder of the max over the discriminator D of sum_t log D(S_t)_t;
L_diff = sum_t |S_t^T H_t|_F^2, with the shared features S_t and the private ones H_t of task t's
examples as rows.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase, several
from raymtl.types import Task


def reversed_gradient(x: Tensor, strength: float) -> Tensor:
    """x itself, whose gradient is -strength times what comes back (Ganin & Lempitsky, 2015,
    arXiv:1409.7495).
    """
    # Not an autograd.Function, which the transforms of torch.func do not pass through.
    fixed = x.detach()
    return fixed + strength * (fixed - x)


class Adversarial(SharingArchitecture):
    """All tasks share one trunk, and each task has another trunk of its own. The head reads the
    features of both.

    Two auxiliary terms shape the two kinds of features. `adversarial` is the mean cross-entropy of
    a linear discriminator that predicts the task from the shared features. The discriminator
    descends it; by gradient reversal, the shared trunk ascends it at the rate lambda.
    `orthogonality` is gamma * sum_t |S_t^T H_t|_F^2 / N_t^2. It makes the shared and the private
    features of the N_t examples of a task orthogonal.

    If all tasks share one input, the discriminator sees the same features for every task and can
    only guess, with probability 1/K. The term is useful if tasks have separate inputs. Both terms
    depend only on inputs, so missing labels do not change them.

    Deviations from the paper: lambda scales only the reversed gradient and not the discriminator's;
    L_diff is divided by N_t^2, so that it does not grow with the number of examples.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoders: Sequence[Encoder],
        reversal: float,
        orthogonality: float,
    ) -> None:
        super().__init__(tasks, several(2, encoders[0].shapes[-1]))
        self.shared_encoder = encoders[0]
        self.task_encoders = nn.ModuleDict(dict(zip(self.task_names, encoders[1:], strict=True)))
        self.discriminator = nn.Linear(encoders[0].out_features, len(tasks))
        self.reversal, self.orthogonality = reversal, orthogonality

    @property
    def shared(self) -> frozenset[str]:
        return self._names("shared_encoder")

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        common = self.shared_encoder(inputs)
        return {name: torch.cat([common, self.task_encoders[name](inputs)], 1) for name in tasks}

    def auxiliary(self, inputs: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if isinstance(inputs, Tensor):
            common = dict.fromkeys(self.task_names, self.shared_encoder(inputs))
            inputs = dict.fromkeys(self.task_names, inputs)
        else:
            common = {name: self.shared_encoder(own) for name, own in inputs.items()}
        entropies, overlaps = [], []
        for name, own in inputs.items():
            scores = self.discriminator(reversed_gradient(common[name], self.reversal))
            entropies.append(-scores.log_softmax(-1)[:, self.task_names.index(name)])
            products = common[name].T @ self.task_encoders[name](own)
            overlaps.append(products.square().sum() / len(own) ** 2)
        return {
            "adversarial": torch.cat(entropies).mean(),
            "orthogonality": self.orthogonality * torch.stack(overlaps).sum(),
        }


class AdversarialSpec(SharingSpecBase):
    """Each task has a trunk of its own beside the shared one. A discriminator must not recognise
    the task from the shared trunk.

    `reversal` is the paper's lambda; at 0 the discriminator does not influence the shared trunk.
    `orthogonality` is its gamma.

    Example: `sharing: {name: adversarial, reversal: 0.1, orthogonality: 0.01}`
    """

    name: Literal["adversarial"] = "adversarial"
    helps: ClassVar[str] = (
        "tasks come from different domains, whose common part should know nothing of the domain"
    )
    has_batch_terms: ClassVar[bool] = True
    reversal: NonNegativeFloat = 0.05
    orthogonality: NonNegativeFloat = 0.01

    def num_encoders(self, num_tasks: int) -> int:
        return 1 + num_tasks

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> Adversarial:
        return Adversarial(tasks, encoders, self.reversal, self.orthogonality)
