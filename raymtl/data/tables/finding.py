"""How a column of texts is written: what the configuration says, and what was found."""

from typing import NamedTuple

from raymtl.data.tables.schema import DateOrder, Decimal, TextForm, Thousands

NEARLY_ALL = 0.6
"""A share of cells that could be numbers or dates, from which on it is said why the column is none.
"""


TEXT, POINT = TextForm(kind="text"), TextForm(kind="number")


class Keys(NamedTuple):
    """What the configuration says about how numbers and dates are written; None where it says
    nothing.
    """

    decimal: Decimal | None = None
    thousands: Thousands | None = None
    dates: DateOrder | None = None


class Finding(NamedTuple):
    """How the texts of a column are written."""

    form: TextForm = TEXT
    others: tuple[TextForm, ...] = ()
    """Where there is a doubt: the forms that read every cell too."""
    share: float = 0.0
    """Of the cells that `best` reads, where no form reads all."""
    best: TextForm | None = None
    odd: tuple[int, ...] = ()
    """The rows of the first cells that are not, where nearly all are."""
    codes: tuple[int, ...] = ()
    """The rows of the first cells that begin with a zero, where all would be numbers otherwise."""
    first: int = 0
    """The row of the first cell."""
