"""Where episodes come from; the union of sources is the registry."""

from typing import Annotated

from pydantic import Field

from raymtl.data.base import SPLITS, Arrays, Source, Split
from raymtl.data.digits import Digits
from raymtl.data.files import Files
from raymtl.data.mixture import Mixture
from raymtl.data.multimnist import MultiMNIST
from raymtl.data.omniglot import Omniglot
from raymtl.data.several import Several
from raymtl.data.sinusoid import Sinusoid

SourceSpec = Annotated[
    Digits | Files | Mixture | MultiMNIST | Omniglot | Several | Sinusoid, Field(discriminator="name")
]

__all__ = [
    "SPLITS",
    "Arrays",
    "Digits",
    "Files",
    "Mixture",
    "MultiMNIST",
    "Omniglot",
    "Several",
    "Sinusoid",
    "Source",
    "SourceSpec",
    "Split",
]
