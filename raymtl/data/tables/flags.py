"""Words for yes and no: which of two classes is yes, and which columns say of each row whether
something is there.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.columns import texts

NO_WORDS = (
    "0",
    "false",
    "no",
    "n",
    "f",
    "off",
    "-",
    "neg",
    "negative",
    "absent",
    "nein",
    "non",
    "não",
    "faux",
)
YES_WORDS = (
    "1",
    "true",
    "yes",
    "y",
    "t",
    "on",
    "+",
    "pos",
    "positive",
    "present",
    "ja",
    "j",
    "oui",
    "si",
    "sí",
    "sim",
)
_USUAL = ("none", "normal", "healthy", "control", "benign")
"""Classes that are the absence of the other one."""
_NOT = ("not ", "not_", "not-", "no ", "no_", "no-", "non ", "non_", "non-", "non", "un", "in")


def holds_flags(column: pa.ChunkedArray) -> bool:
    """Whether all values of a column mean yes or no."""
    known = pc.unique(pc.utf8_lower(texts(column))).drop_null()
    return set(known.to_pylist()) <= {*NO_WORDS, *YES_WORDS}


def no_then_yes(classes: Sequence[str]) -> tuple[str, ...]:
    """Two classes with the one that means yes last, where their words say so; others as they
    are.
    """
    if (
        len(classes) == 2
        and _means_no(classes[1], classes[0])
        and not _means_no(classes[0], classes[1])
    ):
        return (classes[1], classes[0])
    return tuple(classes)


def _means_no(label: str, other: str) -> bool:
    """Whether a class is the absence of the other one."""
    one, two = label.casefold(), other.casefold()
    if two in YES_WORDS or one in YES_WORDS:
        return two in YES_WORDS
    return one in (*NO_WORDS, *_USUAL) or any(one == f"{prefix}{two}" for prefix in _NOT)
