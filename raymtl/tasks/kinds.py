"""Every kind of task, once: a new one is its file and its name in `KINDS`."""

from typing import TYPE_CHECKING, Literal

from raymtl.tasks.binary import BINARY
from raymtl.tasks.classification import CLASSIFICATION
from raymtl.tasks.depth import DEPTH
from raymtl.tasks.detection import DETECTION
from raymtl.tasks.maps import MapKind
from raymtl.tasks.multilabel import MULTILABEL
from raymtl.tasks.normals import NORMALS
from raymtl.tasks.regression import REGRESSION
from raymtl.tasks.segmentation import SEGMENTATION
from raymtl.types import TaskKind

KINDS: tuple[TaskKind, ...] = (
    CLASSIFICATION,
    BINARY,
    MULTILABEL,
    REGRESSION,
    SEGMENTATION,
    DEPTH,
    NORMALS,
    DETECTION,
)
MAP_KINDS = tuple(kind for kind in KINDS if isinstance(kind, MapKind))
_BY_NAME = {kind.name: kind for kind in KINDS}

if TYPE_CHECKING:
    KindName = str
else:
    KindName = Literal[tuple(_BY_NAME)]
"""The name of a kind, as pydantic checks it."""


def kind_named(name: str) -> TaskKind:
    """The kind that configurations and run folders call so."""
    return _BY_NAME[name]
