"""BOIL, body only update in the inner loop (Oh et al., 2021, arXiv:2008.08882): the heads stay where they are."""

from typing import ClassVar, Literal

from torch import Tensor

from raymtl.learners.maml import MAML
from raymtl.types import Params


class BOIL(MAML):
    """Learns features that are fitted to the support set, under heads that are not.

    All of the model that is not a head is moved in the inner loop. The outer loop moves the heads too.
    """

    name: Literal["boil"] = "boil"  # type: ignore[assignment]
    helps: ClassVar[str] = "new tasks come from another domain, and need other features"
    costs: ClassVar[str] = "as maml"

    def start(self, params: Params) -> dict[str, Tensor]:
        model = super().start(params)
        return {name: value for name, value in model.items() if not name.startswith("model.heads.")}
