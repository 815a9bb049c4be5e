"""Numbers and dates as people write them are found where they leave no doubt, and read as what was written."""

import datetime
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymtl.data.tables.finding import TEXT, Finding, Keys
from raymtl.data.tables.forms import find_form, find_forms
from raymtl.data.tables.read_forms import read_as
from raymtl.data.tables.schema import DateOrder, TextForm

NUMBERS = (0.5, 12.0, 850.0, 1234.5, -98765.25, 1234567.0)


def finding(*cells: str | None, keys: Keys = Keys(), divide: bool | None = None) -> Finding:
    return find_forms({"x": pa.array(cells)}, keys, commas_divide=divide)["x"]


def written(value: float, decimal: str, thousands: str, unit: str = "") -> str:
    text = f"{value:,}".replace(",", "t").replace(".", decimal).replace("t", thousands)
    return unit.format(text) if unit else text


@pytest.mark.parametrize("thousands", ["", ",", ".", " ", "'", "’", "\u00a0", "\u202f"])
@pytest.mark.parametrize("decimal", [".", ","])
@pytest.mark.parametrize(
    "unit", ["", "{}%", "{} %", "{} kg", "$ {}", "{} €", "EUR {}", "{} m2", "{} km/h"]
)
def test_numbers_in_every_style_are_read(decimal: str, thousands: str, unit: str) -> None:
    if decimal == thousands:
        pytest.skip("no style")
    cells = [written(value, decimal, thousands, unit) for value in NUMBERS]
    found = finding(*cells, None)
    assert found.form.value_type == "number"
    assert read_as(pa.array([*cells, None]), found.form).values.to_pylist() == [*NUMBERS, None]


@pytest.mark.parametrize(
    ("cells", "divide", "expected"),
    [
        (
            ["51,257", "63,040"],
            True,
            [51257, 63040],
        ),  # a comma in a cell of a file divided by commas
        (["51,257", "63,040"], False, [51.257, 63.04]),
        (["51,257", "63,040"], None, None),
        (["850", "1,234", "12,500", "999,000"], None, [850, 1234, 12500, 999000]),
        (
            ["850", "1.234", "12.500", "999.000"],
            None,
            [850, 1.234, 12.5, 999],
        ),  # the point is a decimal sign
        (["0,123", "12,500"], True, [0.123, 12.5]),  # a group never begins with a zero alone
        (["1.234 €", "2.345 €"], None, None),
        (["1,234,567", "12,345,678"], None, [1234567, 12345678]),
        (["12,34,567", "1,234"], None, [1234567, 1234]),
        (["1,5", "2,25e3", "-3"], None, [1.5, 2250, -3]),
        (["−5", "+5", ".5", "5."], None, [-5, 5, 0.5, 5]),
        (["1 234", "56"], None, [1234, 56]),
        (["3,460e-01", "2,118e+00"], True, [0.346, 2.118]),
    ],
)
def test_the_delimiter_settles_doubts(
    cells: list[str], divide: bool | None, expected: list[Any] | None
) -> None:
    """Nothing else does."""
    found = finding(*cells, divide=divide)
    if expected is None:
        assert found.form == TEXT and len(found.others) == 2
    else:
        assert read_as(pa.array(cells), found.form).values.to_pylist() == expected


def test_a_doubt_is_settled_by_other_columns() -> None:
    sure, doubtful, points = (
        pa.array(["1,5", "2,25"]),
        pa.array(["51,257", "63,040"]),
        pa.array(["1.234", "850"]),
    )
    found = find_forms({"a": sure, "b": doubtful, "c": points}, Keys(), commas_divide=None)
    assert read_as(doubtful, found["b"].form).values.to_pylist() == [51.257, 63.04]
    assert read_as(points, found["c"].form).values.to_pylist() == [1234, 850]
    found = find_forms({"a": pa.array(["1.5", "2.25"]), "b": doubtful}, Keys(), commas_divide=None)
    assert read_as(doubtful, found["b"].form).values.to_pylist() == [51257, 63040]
    days = {
        "a": pa.array(["13/02/2024", "01/02/2024"]),
        "b": pa.array(["01/02/2024", "03/04/2024"]),
    }
    found = find_forms(days, Keys(), commas_divide=None)
    assert found["b"].form.order == "dmy"


def test_keys_settle_every_doubt() -> None:
    cells = ["51,257", "63,040"]
    for keys, expected in (
        (Keys(decimal=","), [51.257, 63.04]),
        (Keys(decimal="."), [51257, 63040]),
        (Keys(thousands=","), [51257, 63040]),
    ):
        assert (
            read_as(pa.array(cells), finding(*cells, keys=keys).form).values.to_pylist() == expected
        )
    assert read_as(
        pa.array(["1.234"]), finding("1.234", keys=Keys(decimal=",")).form
    ).values.to_pylist() == [1234]
    assert finding("1.5", "2.5", keys=Keys(decimal=",")).form == TEXT
    days = ["01/02/2024", "03/04/2024"]
    orders: tuple[tuple[DateOrder, int], ...] = (("dmy", 2), ("mdy", 1))
    for order, month in orders:
        found = finding(*days, keys=Keys(dates=order))
        assert read_as(pa.array(days), found.form).values[0].as_py().month == month


@pytest.mark.parametrize(
    "pattern",
    ["%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%Y/%m/%d", "%Y.%m.%d", "%Y-%m-%d", "%d %b %Y", "%d-%b-%Y",
     "%B %d, %Y", "%b %d %Y", "%Y%m%d", "%d.%m.%y", "%m/%d/%y", "%d.%m.%Y %H:%M", "%m/%d/%Y %I:%M:%S %p",
     "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%d.%m.%Y %H:%M:%S"],
)  # fmt: skip
def test_dates_in_common_orders_are_read(pattern: str) -> None:
    timed = "%M" in pattern
    rng = np.random.default_rng(0)
    days = [
        datetime.datetime(1985, 1, 1) + datetime.timedelta(days=int(n))
        for n in rng.integers(0, 14000, 60)
    ]
    days = [day.replace(hour=13, minute=7) if timed else day for day in days]
    cells = [day.strftime(pattern) for day in days]
    found = finding(*cells)
    expected = days if timed else [day.date() for day in days]
    assert read_as(pa.array(cells), found.form).values.to_pylist() == expected
    if "%Y" in pattern and not timed and pattern != "%Y%m%d":
        short = [re.sub(r"\b0(\d)\b", r"\1", cell) for cell in cells]
        assert read_as(pa.array(short), found.form).values.to_pylist() == expected


def test_a_day_that_is_none_is_no_date() -> None:
    found = finding(
        "31.01.2024", "28.02.2024", "01.03.2024", "02.03.2024", "03.03.2024", "30.02.2024"
    )
    assert found.form == TEXT and found.odd == (5,)
    assert (
        finding("01/02/2024", "03/04/2024").others
        and finding("01/02/2024", "03/04/2024").form == TEXT
    )
    assert finding("01/01/2024", "03/03/2024").form.value_type == "date"  # day and month are alike


@pytest.mark.parametrize(
    "cells",
    [
        ["01234", "00501", "10115"],
        ["007", "008"],
        ["12345678901234567890", "12345678901234567891"],
        ["p00001", "p00002"],
        ["A12", "A13"],
        ["1st", "2nd", "3rd"],
        ["192.168.0.1", "10.0.0.12"],
        ["12 Main Street", "7 Side Road"],
        ["10-20", "20-30"],
        ["<=50K", ">50K"],
        ["red", "blue"],
        ["5 kg", "300 g"],
        ["0x10", "0x11"],
    ],
)
def test_codes_names_and_texts_stay_texts(cells: list[str]) -> None:
    assert finding(*cells).form == TEXT


def test_the_first_unreadable_cells_are_named() -> None:
    cells: list[str | None] = [f"{i}.5" for i in range(20)]
    cells[3], cells[7], cells[12], cells[15] = None, "unknown", "-", "unknown"
    found = finding(*cells)
    assert found.form == TEXT and found.odd == (7, 12, 15) and found.share == pytest.approx(16 / 19)
    assert finding("01234", "10115", *[str(i) for i in range(10000, 10020)]).codes == (0,)
    assert not finding("a", "b", "c", "1", "2").odd
    assert finding("5 kg", "300 g", "7 kg", "20 g").odd == (1, 3)  # numbers, of two units
    assert not finding(
        "12 Main Street", "7 Side Road", "3 Low Way", "5 High Way", "9 Old Road", "4 New Way"
    ).odd


def test_ambiguous_points_are_a_doubt() -> None:
    """In groups of three, beside semicolons."""
    cells = ["1.000", "1.997", "850", "59.823"]
    found = finding(*cells, divide=False)
    assert found.form == TextForm(kind="number") and len(found.others) == 2
    assert not finding(*cells, divide=True).others
    assert not finding("1.000", "1.99", divide=False).others


def test_flags_and_whole_numbers_stay_what_they_were() -> None:
    assert finding("true", "False", None).form == TextForm(kind="flag")
    assert finding("1", "-2").form == TextForm(kind="whole")
    assert finding("1.5", "1e5", "inf").form == TextForm(kind="number")
    assert find_form(pa.array([None, None], pa.string()), Keys()).form == TEXT


def test_what_cannot_be_read_is_pointed_at() -> None:
    for form, cell in (
        ("flag", "maybe"),
        ("whole", "x"),
        ("number", "1,5"),
        ("date", "31.12.2024"),
        ("time", "25:00"),
    ):
        read = read_as(pa.array([None, cell]), TextForm.model_validate({"kind": form}))
        assert read.wrong.tolist() == [False, True]
    comma = TextForm(kind="number", decimal=",", thousands=".", unit="€")
    assert read_as(pa.array(["1.234,5 €", "1.23 €", "5 $", "7 €"]), comma).wrong.tolist() == [
        False,
        True,
        True,
        False,
    ]
