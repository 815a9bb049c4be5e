"""What the gateway sends to the processes that hold the model, and gets from them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Rows = Sequence[Mapping[str, Any]]
"""Each with its cells by the names of columns, as a request has them."""


class Support(NamedTuple):
    """What a model is to be adapted to; its handle is made of the content."""

    handle: str
    rows: Rows
    steps: int | None = None
    """Inner steps; the learner's own unless given."""
    task: str | None = None
    """The only task that the rows have labels of."""


class Query(NamedTuple):
    """Rows to predict."""

    rows: Rows
    handle: str | None = None
    """Of an adapted model; None for the run's own."""
    support: Support | None = None
    """What the handle stands for, for a process that does not have it."""


class Answer(NamedTuple):
    """What a request gets."""

    status: int
    content: Mapping[str, Any]


def refused(sentence: str, status: int = 422) -> Answer:
    """A sentence on what is wrong."""
    return Answer(status, {"error": sentence})


MISSING = refused("the process does not have this adapted model", 409)
"""To a query whose handle is unknown to the process: the gateway sends it again, with its support
set.
"""
