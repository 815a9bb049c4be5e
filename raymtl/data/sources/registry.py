"""Every source of one data set, once: a new one is its file and its name in `SOURCES`."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter, ValidationError

from raymtl.data.base import Source
from raymtl.data.prepared.source import Prepared
from raymtl.data.sources.cifar100 import CIFAR100
from raymtl.data.sources.digits import Digits
from raymtl.data.sources.joined import errors_of_part
from raymtl.data.sources.mixture import Mixture
from raymtl.data.sources.multimnist import MultiMNIST
from raymtl.data.sources.nyuv2 import NYUv2
from raymtl.data.sources.omniglot import Omniglot
from raymtl.data.sources.sinusoid import Sinusoid
from raymtl.data.sources.voc import VOC
from raymtl.data.tables import Files
from raymtl.schema.components import Chosen

SOURCES: tuple[type[Source], ...] = (
    Digits,
    CIFAR100,
    Files,
    Mixture,
    MultiMNIST,
    NYUv2,
    Omniglot,
    Prepared,
    Sinusoid,
    VOC,
)

if TYPE_CHECKING:
    PartSpec = Source
else:
    PartSpec = Annotated[reduce(or_, SOURCES), Chosen("data")]
"""A source that `several` can have as a part, chosen by its name."""

_PART: TypeAdapter[Source] = TypeAdapter(PartSpec)


def parsed_part(name: str, part: Any) -> Any:
    """The source that a part of `several` describes; the part as it is where that is wrong.

    What is wrong is said when the whole is read, with the place of the part in it.
    """
    with errors_of_part(name):
        try:
            return _PART.validate_python(part)
        except ValidationError:
            return part
