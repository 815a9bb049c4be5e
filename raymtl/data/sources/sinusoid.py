"""`sinusoid`: y = A sin(x - phase), as MAML has it (Finn et al., 2017, arXiv:1703.03400)."""

from typing import Literal

from raymtl.data.sources.curves import Curves


class Sinusoid(Curves):
    """Sinusoids with amplitude A uniform in [0.1, 5] and phase uniform in [0, pi], at x in [-5, 5].

    Who does not adapt cannot do better than the mean over all sinusoids, -2/pi E[A] cos x: an MSE
    of 3.006.
    """

    name: Literal["sinusoid"] = "sinusoid"

    @property
    def family_names(self) -> tuple[str, ...]:
        return ("sinusoid",)
