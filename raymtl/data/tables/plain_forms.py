"""Texts that anybody would read alike: flags, numbers, and dates as ISO 8601 has them."""

import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.dates import compact
from raymtl.data.tables.finding import Keys
from raymtl.data.tables.read_forms import FLAGS, cast_all
from raymtl.data.tables.schema import TextForm

CODE = r"^[+-]?0[0-9xX]+$"


NO_NUMBER = rf"{CODE}|^[+-]?\d{{19,}}$"
"""Codes with zeros before them, and names of digits, of which different ones would be the same
64-bit float.
"""


def plain_form(known: pa.Array, keys: Keys = Keys(), *, days: bool = True) -> TextForm | None:
    """The form of trimmed texts [N], none of them null, that anybody would read alike; None where
    they have none.

    `days` says whether whole numbers such as 20241231 may be dates.
    """
    if pc.is_in(pc.utf8_lower(known[:1]), value_set=FLAGS)[0].as_py():
        flags = pc.all(pc.is_in(pc.utf8_lower(known), value_set=FLAGS)).as_py()
        if flags:
            return TextForm(kind="flag")
        return None
    whole = cast_all(known, pa.int64())
    if whole is not None and not pc.any(pc.match_substring_regex(known, CODE)).as_py():
        if days and _days_of_eight_digits(known, whole, keys):
            return TextForm(kind="date", order="ymd")
        return _WHOLE
    if whole is None and keys.decimal != "," and keys.thousands != ".":
        number = cast_all(known, pa.float64())
        if number is not None and not pc.any(pc.match_substring_regex(known, NO_NUMBER)).as_py():
            return TextForm(kind="number")
    for kind, target in (
        ("date", pa.date32()),
        ("moment", pa.timestamp("us")),
        ("moment", pa.timestamp("us", "UTC")),
    ):
        if whole is None and cast_all(known, target) is not None:
            return TextForm(kind=kind)
    return None


_WHOLE = TextForm(kind="whole")


def _days_of_eight_digits(known: pa.Array, whole: pa.Array, keys: Keys) -> bool:
    """Whether whole numbers are dates such as 20241231: five different ones at least, and all of
    them.
    """
    ends = pc.min_max(whole).as_py()
    if keys.dates not in (None, "ymd") or ends["min"] < 18000101 or ends["max"] > 21991231:
        return False
    return len(pc.unique(whole)) >= 5 and bool(compact(known).known.all())
