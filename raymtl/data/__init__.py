"""Where episodes come from; the union of sources is the registry."""

from typing import Annotated

from pydantic import Field

from raymtl.data.base import SPLITS, Arrays, Source, Split
from raymtl.data.digits import Digits
from raymtl.data.mixture import Mixture
from raymtl.data.omniglot import Omniglot
from raymtl.data.sinusoid import Sinusoid

SourceSpec = Annotated[Digits | Mixture | Omniglot | Sinusoid, Field(discriminator="name")]

__all__ = ["SPLITS", "Arrays", "Digits", "Mixture", "Omniglot", "Sinusoid", "Source", "SourceSpec", "Split"]
