"""Sluice networks (Ruder et al., 2017, arXiv:1705.08142): subspaces, mixed by alpha between tasks
and beta over layers.

x~_i^l = sum_j alpha^l_ij x_j^l over the 2K subspaces i, j of all tasks; the head of task t reads
sum_l beta_t^l A_t^l [x~_t1^l, x~_t2^l]; penalty: strength * sum over layers and tasks of |G_t1^T
G_t2|_F^2.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase, several
from raymtl.sharing.cross_stitch import mostly, split_by_task
from raymtl.types import Params, Task

NUM_SUBSPACES = 2  # the paper's G


class Sluice(SharingArchitecture):
    """Each task has two towers, called subspaces. The subspaces of all tasks are mixed after every
    stage.

    `alpha` [L, 2K, 2K] mixes the 2K subspaces after each of the L stages; its rows and columns are
    ordered by task. `beta.TASK` [L] weighs the stages for the head; the weights are free numbers
    without a softmax. The head reads both subspaces of the last stage, plus those of earlier stages
    after a linear adapter of the task, where maps are first averaged over their pixels. It is
    therefore twice as wide as the encoder's features. With alpha = I and beta = (0, .., 0, 1) the
    tasks are independent networks.

    All towers see the inputs, also for the prediction of one task. Where tasks have separate
    inputs, each tower sees those of all tasks in one pass.

    For the penalty, the weights of each layer of a subspace are a matrix [out, rest]: G_t1 and G_t2
    for the two subspaces of task t. It is 0 if the outputs that a layer can have in one subspace
    are orthogonal to those in the other. Biases are not part of it.

    Deviations from the paper: a subspace is a whole copy of the encoder and not half of one; the
    head has adapters; stages of any encoder take the place of recurrent layers.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoders: Sequence[Encoder],
        own: float,
        strength: float,
        lr_scale: float,
    ) -> None:
        width = NUM_SUBSPACES * encoders[0].out_features
        super().__init__(tasks, several(NUM_SUBSPACES, encoders[0].shapes[-1]))
        self.strength = strength
        self.lr_scale = {"alpha": lr_scale, "beta": lr_scale}
        self.towers = nn.ModuleDict(
            {
                name: nn.ModuleList(encoders[NUM_SUBSPACES * i : NUM_SUBSPACES * (i + 1)])
                for i, name in enumerate(self.task_names)
            }
        )
        shapes = encoders[0].shapes[1:]
        self.alpha = nn.Parameter(mostly(own, len(encoders)).repeat(len(shapes), 1, 1))
        self.beta = nn.ParameterDict(
            {name: nn.Parameter(mostly(own, len(shapes))[-1]) for name in self.task_names}
        )
        self.adapters = nn.ModuleDict()
        for name in self.task_names:
            adapters = [nn.Linear(NUM_SUBSPACES * shape[0], width) for shape in shapes[:-1]]
            self.adapters[name] = nn.ModuleList(adapters)

    @property
    def shared(self) -> frozenset[str]:
        return self._names("towers", "alpha")

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        towers = [
            tower
            for name in self.task_names
            for tower in self.towers.get_submodule(name).children()
        ]
        x: Sequence[Tensor] = [inputs] * len(towers)
        outputs: dict[str, list[Tensor]] = {name: [] for name in tasks}
        for depth, mixing in enumerate(self.alpha.unbind(0)):
            stages = [tower.get_submodule(f"stages.{depth}") for tower in towers]
            stacked = torch.stack([stage(own) for stage, own in zip(stages, x, strict=True)])
            x = torch.einsum("ij,j...->i...", mixing, stacked).unbind(0)
            last = depth + 1 == len(self.alpha)
            for name, layers in outputs.items():
                first = NUM_SUBSPACES * self.task_names.index(name)
                pair = x[first : first + NUM_SUBSPACES]
                if last:
                    layers.append(torch.cat([own.flatten(1) for own in pair], 1))
                else:
                    # Not the whole map: the adapter of a first stage would be larger than the
                    # network.
                    means = torch.cat([_channel_means(own) for own in pair], 1)
                    layers.append(self.adapters.get_submodule(f"{name}.{depth}")(means))
        return {
            name: torch.einsum("l,lnf->nf", self.beta[name], torch.stack(outputs[name]))
            for name in tasks
        }

    def features_by_task(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return split_by_task(self.features(torch.cat(list(inputs.values())), tuple(inputs)), inputs)

    def penalty(self, params: Params) -> Tensor:
        total = super().penalty(params)
        for name in self.task_names:
            for key, value in self.towers.get_submodule(f"{name}.0").named_parameters():
                if value.ndim > 1:
                    one, other = (
                        params[f"towers.{name}.{i}.{key}"].flatten(1) for i in range(NUM_SUBSPACES)
                    )
                    # |A^T B|^2 = <A A^T, B B^T>: matrices as large as the outputs, which are fewer
                    # than the inputs.
                    total = total + ((one @ one.T) * (other @ other.T)).sum()
        return self.strength * total


def _channel_means(x: Tensor) -> Tensor:
    """[N, C, ...] -> [N, C]."""
    if x.ndim == 2:
        return x
    return x.flatten(2).mean(2)


class SluiceSpec(SharingSpecBase):
    """Each task has two subspaces. All of them are mixed with each other after every stage, and the
    head mixes the stages.

    `own` is the initial weight of a subspace in its own mixture, and of the last stage in the
    mixture that the head reads; the other weights share 1 - own. `strength` scales the penalty on
    subspaces that are not orthogonal. `lr_scale` multiplies the outer learning rate of both
    mixtures, alpha and beta.

    Example: `sharing: {name: sluice, own: 0.8, strength: 0.01}`
    """

    name: Literal["sluice"] = "sluice"
    helps: ClassVar[str] = (
        "which layers and which parts of them to share is unknown; dear: two encoders a task"
    )
    needs_stages: ClassVar[bool] = True
    own: float = Field(0.9, ge=0, le=1)
    strength: NonNegativeFloat = 0.001
    lr_scale: PositiveFloat = 10.0

    def num_encoders(self, num_tasks: int) -> int:
        return NUM_SUBSPACES * num_tasks

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> Sluice:
        return Sluice(tasks, encoders, self.own, self.strength, self.lr_scale)
