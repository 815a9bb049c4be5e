"""`mixture`: curves of several families, the multimodal regression of MMAML (Vuorio et al., 2019,
arXiv:1910.13616).
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raymtl.data.sources.curves import Curves
from raymtl.types import UserError


class Mixture(Curves):
    """Curves of several families, one an episode, whose name is the episode's domain.

    `sinusoid`: A sin(x - phase), A uniform in [0.1, 5], phase in [0, pi]. `line`: a x + b, a and b
    in [-3, 3]. `quadratic`: +-a (x - c)^2 + b, a in [0.02, 0.15], either sign, c and b in [-3, 3].
    The ranges are those of the authors' code, whose noise is `noise_std: 0.3`. There each family is
    a fixed share of a meta-batch; here every episode draws its family, with equal odds.
    """

    name: Literal["mixture"] = "mixture"
    families: Annotated[
        tuple[Literal["sinusoid", "line", "quadratic"], ...], Field(min_length=1)
    ] = (
        "sinusoid",
        "line",
        "quadratic",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.families)) < len(self.families):
            raise UserError(
                f"data.families: expected every family once, got {list(self.families)}. Remove the "
                "repetition."
            )
        return self

    @property
    def family_names(self) -> tuple[str, ...]:
        return self.families
