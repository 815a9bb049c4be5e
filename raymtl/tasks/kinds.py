"""Every kind of task, once: a new one is its file and its name in `KINDS`."""

from functools import cache
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from raymtl.schema.components import name_built_in_kinds, registered_kinds
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
name_built_in_kinds({name: type(kind) for name, kind in _BY_NAME.items()})


class _OfAKind:
    """In an annotation of a text: the name of one of `KINDS`, or of a kind that is registered."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            _check, core_schema.literal_schema([*_BY_NAME])
        )


def _check(name: Any, handler: core_schema.ValidatorFunctionWrapHandler) -> Any:
    if isinstance(name, str) and name in registered_kinds():
        return name
    return handler(name)


KindName = Annotated[str, _OfAKind()]
"""The name of a kind, as pydantic checks it."""


@cache
def _made(kind: type[TaskKind]) -> TaskKind:
    return kind()


def kind_named(name: str) -> TaskKind:
    """The kind that configurations and run folders call so."""
    own = registered_kinds().get(name)
    if own is not None:
        return _made(own)
    return _BY_NAME[name]
