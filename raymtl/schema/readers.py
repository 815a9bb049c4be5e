"""Functions that read a value of a configuration before its type is checked; the outline has them
too.
"""

import datetime
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

READ_BY = "read by "
"""Begins the comment in a JSON Schema that names the function."""


def as_written(value: Any) -> Any:
    """A whole number as the text that it is written as; raises ValueError for what YAML may write
    in several ways.
    """
    if isinstance(value, bool):
        if value:
            words = "yes and on"
        else:
            words = "no and off"
        raise ValueError(
            f"expected a text, got {value}, as which YAML reads {words}: put it in quotes"
        )
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | datetime.date):
        if isinstance(value, float):
            what = "a number"
        else:
            what = "a date"
        raise ValueError(
            f"expected a text, got {value}, which YAML reads as {what}: put it in quotes"
        )
    return value


Written = Annotated[
    str,
    BeforeValidator(as_written),
    WithJsonSchema({"type": ["string", "integer"], "$comment": f"{READ_BY}as_written"}),
]
"""A text that a user may write as a number: the name of a column, what stands for nothing."""


def not_running(norm: Any) -> Any:
    """The norm of an encoder; raises ValueError for one with running statistics."""
    if isinstance(norm, str) and "running" in norm:
        raise ValueError(
            f"expected none, group, layer, batch or per_step, got '{norm}': running "
            "statistics are no function of the parameters, and carry each support set into the "
            "queries of the next. Choose batch"
        )
    return norm


READERS: dict[str, Callable[[Any], Any]] = {
    reader.__name__: reader for reader in (as_written, not_running)
}
