"""T-net (Lee & Choi, 2018, arXiv:1801.05558).

A layer applies T W; phi_{j+1} = phi_j - alpha grad_W L_S(T phi_j), T learned in the outer loop
alone: T W then moves along T T^T times its gradient.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from raymtl.learners.base import Objective
from raymtl.learners.maml import MAML
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params, prefixed, select

TRANSFORM = "learner.transform"


class TNet(MAML):
    """MAML with a learned linear transformation after every layer; the inner loop differentiates
    through it and does not move it.

    Let W [D, ...] be a parameter of two dimensions or more that the inner loop adapts. It has a T
    [D, D] that mixes it along its first axis, which are the outputs of a layer or the channels of a
    convolution. T starts as the identity, with which this is maml. In adapted parameters, T W has
    replaced W and the identity has replaced T. So they predict without T, and adapting them again
    continues as maml does.

    Deviations from the paper: parameters of two dimensions that belong to no layer, such as those
    by which an architecture mixes its towers, are transformed too; biases are added after T and are
    not transformed; the masks of MT-nets, which choose the weights that adapt, are not learned
    (`adapts` names them instead).

    Example: `learner: {name: t_net, inner_lr: 0.1, inner_steps: 5}`
    """

    name: Literal["t_net"] = "t_net"  # type: ignore[assignment] # not the name of the base
    helps: ClassVar[str] = "in some directions of the weights tasks differ more than in others"
    costs: ClassVar[str] = "as maml, and a product of T and W in every pass"

    def init_params(self, model_params: Params, generator: torch.Generator) -> Params:
        moved = select(self.start(prefixed(model_params, "model")), "model")
        return {
            **super().init_params(model_params, generator),
            **prefixed(identities(moved), "transform"),
        }

    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        return folded(super().adapt(model, params, support, objective, steps))

    def predict(
        self, model: SharingArchitecture, params: Params, inputs: Tensor | Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return super().predict(model, folded(params), inputs)


def identities(weights: Params) -> dict[str, Tensor]:
    """A transformation [D, D] that changes nothing, for each of the weights [D, ...] of two
    dimensions or more.
    """
    return {
        name: torch.eye(len(value), dtype=value.dtype, device=value.device)
        for name, value in weights.items()
        if value.ndim > 1
    }


def folded(params: Params) -> dict[str, Tensor]:
    """The parameters with T W in the place of W, and the identity in that of T."""
    transforms = select(params, TRANSFORM)
    with torch.autocast(next(iter(params.values())).device.type, enabled=False):
        weights = {
            f"model.{name}": (transform @ params[f"model.{name}"].flatten(1)).view_as(
                params[f"model.{name}"]
            )
            for name, transform in transforms.items()
        }
    return {**params, **weights, **prefixed(identities(transforms), TRANSFORM)}
