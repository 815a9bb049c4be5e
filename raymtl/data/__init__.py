"""Where episodes come from; the union of sources is the registry."""

from typing import Annotated

from pydantic import Field

from raymtl.data.base import SPLITS, Arrays, Source, Split
from raymtl.data.cifar100 import CIFAR100
from raymtl.data.digits import Digits
from raymtl.data.files import Files
from raymtl.data.mixture import Mixture
from raymtl.data.multimnist import MultiMNIST
from raymtl.data.nyuv2 import NYUv2
from raymtl.data.omniglot import Omniglot
from raymtl.data.several import Several
from raymtl.data.sinusoid import Sinusoid
from raymtl.data.voc import VOC

SourceSpec = Annotated[
    Digits | CIFAR100 | Files | Mixture | MultiMNIST | NYUv2 | Omniglot | Several | Sinusoid | VOC,
    Field(discriminator="name"),
]

__all__ = [
    "CIFAR100",
    "SPLITS",
    "VOC",
    "Arrays",
    "Digits",
    "Files",
    "Mixture",
    "MultiMNIST",
    "NYUv2",
    "Omniglot",
    "Several",
    "Sinusoid",
    "Source",
    "SourceSpec",
    "Split",
]
