"""Where episodes come from."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from raymtl.data.base import SPLITS, Arrays, Source, Split
from raymtl.data.prepared.source import Prepared, files_of
from raymtl.data.sources.cifar100 import CIFAR100
from raymtl.data.sources.combined import Several
from raymtl.data.sources.digits import Digits
from raymtl.data.sources.mixture import Mixture
from raymtl.data.sources.multimnist import MultiMNIST
from raymtl.data.sources.nyuv2 import NYUv2
from raymtl.data.sources.omniglot import Omniglot
from raymtl.data.sources.registry import SOURCES
from raymtl.data.sources.sinusoid import Sinusoid
from raymtl.data.sources.voc import VOC
from raymtl.data.tables import Files
from raymtl.schema.components import Chosen

if TYPE_CHECKING:
    SourceSpec = Source
else:
    SourceSpec = Annotated[reduce(or_, (*SOURCES, Several)), Chosen("data")]
"""Any source, chosen by its name."""

__all__ = [
    "CIFAR100",
    "SOURCES",
    "SPLITS",
    "VOC",
    "Arrays",
    "Digits",
    "Files",
    "Mixture",
    "MultiMNIST",
    "NYUv2",
    "Omniglot",
    "Prepared",
    "Several",
    "Sinusoid",
    "Source",
    "SourceSpec",
    "Split",
    "files_of",
]
