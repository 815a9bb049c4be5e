"""ANIL, almost no inner loop (Raghu et al., 2020, arXiv:1909.09157): MAML whose inner loop moves
the heads alone.
"""

from typing import ClassVar, Literal

from raymtl.learners.maml import MAML


class ANIL(MAML):
    """Learns features and heads, of which only the heads are fitted to the support set.

    The meta-gradient of the features is that of the query loss, and includes how the inner
    gradients depend on them. Deviation from the paper: none in training. Its inference without a
    head (NIL) corresponds to `protonet`, with another distance.

    Example: `learner: {name: anil, inner_lr: 0.1, inner_steps: 5}`
    """

    name: Literal["anil"] = "anil"  # type: ignore[assignment] # not the name of the base
    helps: ClassVar[str] = (
        "tasks can use the same features: adapts as maml at a fraction of the cost"
    )
    costs: ClassVar[str] = "one gradient, and k of the heads alone"
    adapts: tuple[Literal["heads.*"]] = ("heads.*",)
