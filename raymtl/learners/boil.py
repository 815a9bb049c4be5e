"""BOIL, body only update in the inner loop (Oh et al., 2021, arXiv:2008.08882): the heads stay
where they are.
"""

from typing import ClassVar, Literal

from raymtl.learners.maml import MAML


class BOIL(MAML):
    """Learns features that are fitted to the support set, under heads that are not.

    The inner loop moves all parameters of the model except those of the heads. The outer loop moves
    the heads too.

    Example: `learner: {name: boil, inner_lr: 0.1, inner_steps: 5}`
    """

    name: Literal["boil"] = "boil"  # type: ignore[assignment] # not the name of the base
    helps: ClassVar[str] = "new tasks come from another domain, and need other features"
    costs: ClassVar[str] = "as maml"
    adapts: tuple[Literal["*"], Literal["-heads.*"]] = ("*", "-heads.*")
