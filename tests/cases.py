"""Small inputs that once went wrong, by the names of their folders, and what each must come to.

The inputs lie in the folder that RAYMTL_CASES names; `test_cases.py` walks it. An expectation is what the README beside
the input says, as a check of what `raymtl data inspect` printed and of its `--json`.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from raymtl.config import load

SPLITS = ("train", "val", "test")


class Seen(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str
    folder: Path
    """With the input, and all that was written."""
    told: Mapping[str, Any]
    """Its `--json`; empty where it ended in an error."""

    @property
    def text(self) -> str:
        return self.out + self.err

    def role(self, column: str) -> str | None:
        """What an input is read as; None where it is no input."""
        return next((one["role"] for one in self.told["columns"] if one["column"] == column), None)

    def notes_on(self, place: str) -> str:
        """The texts of the notes whose place has this in it."""
        return "\n".join(note["text"] for note in self.told["notes"] if place in note["place"])

    def counts(self, task: str) -> dict[str, int]:
        """Class -> its rows in all splits."""
        splits = self.told["tasks"][task]["splits"]
        names = splits["train"]["balance"]
        return {
            name: sum(splits[split]["balance"].get(name, 0) for split in SPLITS) for name in names
        }


Check = Callable[[Seen], None]


def both(*checks: Check) -> Check:
    def check(seen: Seen) -> None:
        for one in checks:
            one(seen)

    return check


def refused(*says: str, never: tuple[str, ...] = ()) -> Check:
    """One sentence that has all of these patterns, exit status 2."""

    def check(seen: Seen) -> None:
        assert seen.status == 2, seen.text
        lines = [line for line in seen.err.splitlines() if line.strip()]
        assert len(lines) == 1 and lines[0].startswith("raymtl: "), seen.err
        for pattern in says:
            assert re.search(pattern, seen.err), (pattern, seen.err)
        for pattern in never:
            assert not re.search(pattern, seen.err), (pattern, seen.err)

    return check


def inputs(**roles: str) -> Check:
    """These columns are inputs of these roles, separated by | where several will do."""
    return columns(roles)


def columns(roles: Mapping[str, str]) -> Check:
    def check(seen: Seen) -> None:
        assert seen.status == 0, seen.text
        for column, allowed in roles.items():
            assert seen.role(column) in allowed.split("|"), (column, seen.role(column))

    return check


def noted(place: str, *says: str) -> Check:
    """A note on this place, printed too, has all of these patterns."""

    def check(seen: Seen) -> None:
        assert seen.status == 0, seen.text
        found = seen.notes_on(place)
        for pattern in says:
            assert re.search(pattern, found), (pattern, seen.told["notes"])
        assert f"note: {place}" in seen.out

    return check


def left_out(column: str) -> Check:
    def check(seen: Seen) -> None:
        assert seen.status == 0 and seen.role(column) is None, seen.text
        assert column in seen.told["left_out"]

    return check


def classes(task: str, *kinds: str, **counts: int) -> Check:
    """The task is of one of these kinds, with these classes in so many rows."""
    return balance(task, kinds, counts)


def balance(task: str, kinds: tuple[str, ...], counts: Mapping[str, int]) -> Check:
    def check(seen: Seen) -> None:
        assert seen.status == 0, seen.text
        assert seen.told["tasks"][task]["kind"] in kinds
        found = seen.counts(task)
        for name, count in counts.items():
            assert found.get(name) == count, found

    return check


def rows(count: int) -> Check:
    def check(seen: Seen) -> None:
        assert seen.status == 0, seen.text
        assert seen.told["rows"] == count

    return check


def shown(*texts: str) -> Check:
    """All of these stand in what was printed, as they are."""

    def check(seen: Seen) -> None:
        assert seen.status == 0, seen.text
        for text in texts:
            assert text in seen.out, (text, seen.out)

    return check


def never(*patterns: str) -> Check:
    def check(seen: Seen) -> None:
        for pattern in patterns:
            assert not re.search(pattern, seen.text), (pattern, seen.text)

    return check


def _ten_thousand_columns(seen: Seen) -> None:
    assert seen.status == 0, seen.text
    assert seen.told["input_shape"] == [10_000]
    assert len(seen.out.splitlines()) <= 100


def _small_classes(seen: Seen) -> None:
    found = re.findall(r"(\d+) of (\d+) classes have fewer than 7 rows", seen.notes_on("task 'y'"))
    assert sum(int(few) for few, _ in found) == 10 and sum(int(all_) for _, all_ in found) == 25, (
        seen.told["notes"]
    )


def _spread_is_told(seen: Seen) -> None:
    assert seen.status == 0, seen.text
    for split in SPLITS:
        assert 1e-31 < seen.told["tasks"]["y"]["splits"][split]["balance"]["std"] < 1e-29
    assert "std 0" not in seen.out and "e-3" in seen.out


def pictures(seen: Seen) -> tuple[list[np.ndarray], np.ndarray]:
    """The pictures as their files have them, and as a model reads them, [N, ...]; each in an order of its own."""
    files = [
        np.asarray(Image.open(path), np.float64)
        for path in sorted((seen.folder / "im").glob("*/*"))
    ]
    return files, load(seen.folder / "c.yaml", {}).data.load()["inputs"]


def _scaled_alike(seen: Seen) -> None:
    """The mean of a picture is the same multiple of that of its file, in all of the set."""
    assert seen.status == 0, seen.text
    files, read = pictures(seen)
    before = np.sort([picture.mean() for picture in files])
    after = np.sort(read.reshape(len(read), -1).mean(1))
    ratio = after / before
    assert ratio.max() < 1.1 * ratio.min()


def _keeps_levels(seen: Seen) -> None:
    _scaled_alike(seen)
    assert len(np.unique(pictures(seen)[1])) > 16


def _not_black(seen: Seen) -> None:
    if seen.status == 2:
        return
    _scaled_alike(seen)
    read = pictures(seen)[1] / 255
    assert read.max() > 0.7 and read.std() > 0.05


def _one_huge(seen: Seen) -> None:
    assert seen.status == 0, seen.text
    assert re.search(r"1 of 31\b.*0huge\.png", seen.notes_on("picture")), seen.told["notes"]


def _all_three(seen: Seen) -> None:
    classes("y", "classification")(seen)
    assert set(seen.counts("y")) == {"0", "1", "2"} and sum(seen.counts("y").values()) == 60


def _missing_none(seen: Seen) -> None:
    assert seen.status == 0, seen.text
    assert seen.counts("damage")["None"] == 20
    assert seen.told["tasks"]["damage"]["missing"] == 0


def _flags(seen: Seen) -> None:
    if seen.status == 2:
        refused("multilabel", "t1")(seen)
        return
    assert seen.told["tasks"]["tags"]["kind"] == "multilabel"


def quoted_or_read(*needed: str) -> Check:
    """The name is read as a name, or the sentence says to put it in quotes."""

    def check(seen: Seen) -> None:
        if seen.status == 2:
            refused("quotes", never=("expected 'auto'", "valid string"))(seen)
            return
        names = {one["column"] for one in seen.told["columns"]} | set(seen.told["tasks"])
        assert names >= set(needed)

    return check


def _location_or_name(seen: Seen) -> None:
    """Zip codes stay one category, or the sentence says how."""
    if seen.status == 2:
        refused(r"zip", r"category")(seen)
        return
    assert seen.role("zip") == "category"


INSPECTED: dict[str, Check] = {
    "A01c-decimal-comma-input-only": both(
        inputs(area="number"), noted("column 'area'", "decimal comma")
    ),
    "A01d-decimal-comma-few": both(inputs(area="number"), noted("column 'area'", "decimal comma")),
    "A02b-thousands-input": both(inputs(income="number"), noted("column 'income'", "51257")),
    "A03-one-bad-cell": both(
        noted("column 'income'", "59 of 60", "unknown", "row 7"), never("name of the row")
    ),
    "A03b-one-bad-cell-few": noted("column 'rooms'", "59 of 60", "'-'", "row 7"),
    "A04-none-class": noted("task 'damage'", "20 of 60", "None", "missing"),
    "A04b-none-class-named": _missing_none,
    "A05-bigint": inputs(ns="number"),
    "A06-latin1-header": refused(r"d\.csv", "utf8", r"[Ss]et data\.encoding", never=("codec",)),
    "A06c-utf16": both(inputs(stadt="category", a="number"), shown("Köln")),
    "A06e-bad-encoding-name": refused(r"data\.encoding", "windows1252x"),
    "A08-german-dates": both(inputs(when="number"), noted("column 'when'", "day, month, year")),
    "A09f-dot-adult": noted("task 'y'", r"'<=50K\.'", r"'>50K\.'", "no row for training"),
    "A09g-const-label": noted("task 'y'", r"always 5\.5"),
    "A09i-yesno-columns": _flags,
    "A10b-pandas-index": both(left_out(""), noted("column ''", "index")),
    "A10c-dots-spaces": both(
        inputs(**{"flipper [mm]": "number"}), shown("flipper [mm]", "bill.length mm")
    ),
    "A10d-dot-taskname": refused(r"column: '?sp\.ecies", never=(r"\^", r"pattern", "regular")),
    "A10f-int-columns": quoted_or_read("0", "1", "2"),
    "A10g-yaml-bool-name": quoted_or_read("x", "no"),
    "A10h-yaml-bool-task": quoted_or_read("x", "on"),
    "A10j-quoted-commas-header": inputs(**{"size, gross, m2, total": "number"}),
    "A11e-10k-columns": _ten_thousand_columns,
    "A12d-dot-missing": refused(r"'a'", r"'\.'", r"row 3\b", never=("name of the row",)),
    "A12f-float-max": refused(r"d\.csv", r"row \d+", "'y'", r"1e\+?300"),
    "A12g-large-offset": classes("y", "regression"),
    "A12h-leadzero": both(inputs(zip="category|text"), noted("column 'zip'", "01234")),
    "B01-half": inputs(h="number"),
    "B06-largestring-view": inputs(c="category|text", d="category|text"),
    "B08-uint64": both(inputs(a="number"), noted("column 'u'", r"2\^53")),
    "B11-index-level": both(
        left_out("__index_level_0__"), noted("column '__index_level_0__'", "index")
    ),
    "B12-bytes-text": both(inputs(a="number"), never("pictures", r"max_corrupt")),
    "B12b-bytes-label": both(balance("y", ("binary", "classification"), {}), never(r"\bmaps?\b")),
    "B20d-label-int-string": _all_three,
    "B20i-dict-plain": both(inputs(c="category"), rows(60)),
    "B30c-gz-named-csv": both(refused(r"d\.csv", "gzip"), never(r"[^\x20-\x7e\n]", r"\\x")),
    "B30e-zip": refused(r"\.zip", "[Uu]npack", never=(r"data\.format",)),
    "B30f-zip-said-csv": both(refused(r"\.zip", "[Uu]npack"), never(r"[^\x20-\x7e\n]", r"\\x")),
    "C02b-12bit": _keeps_levels,
    "C02c-float-tiff": _not_black,
    "C02d-16bit-lowrange-mixed": _scaled_alike,
    "C07c-bomb-among-gray": _one_huge,
    "C10-underscore-names": rows(60),
    "C10b-only-underscore": rows(30),
    "D01-some-small": _small_classes,
    "E05-dollar": rows(60),
    "E14-markup-column": shown("size [m2]", "[/b] x", "[red]z"),
    "E14b-markup-class": shown("[/p]", "[bold]q"),
    "E14c-markup-category": shown("[/c]", "[d]"),
    "J1-nan-in-json": balance("y", ("binary",), {"1": 2}),
    "K14-classes-int-vs-str": both(
        balance("y", ("binary", "classification"), {"01": 30, "02": 30}), shown("01", "02")
    ),
    "K15c-arff-utf8": shown("größe", "süß"),
    "K16-arff-latin1-said": shown("süß"),
    "K18-header-bom-utf16be": both(rows(60), inputs(a="number")),
    "K2-quarter-sci": _spread_is_told,
    "K20-label-only-in-test": noted("task 'y'", "'r'", "no row for training"),
    "K21-test-types-differ": _location_or_name,
    "K23-train-test-overlap": noted("test", "60 of 60 rows"),
    "K24-const-in-train-varies-in-test": noted("column 'k'", "always 5", "59000"),
    "K3-percent": both(inputs(rate="number"), noted("column 'rate'", "%")),
    "L2-offset-2e+07-std-1": classes("y", "regression"),
    "L3-offset-1e+08-std-1": classes("y", "regression"),
    "W3-sparse-task-100k": rows(100_000),
    "W5-sparse-task-small": rows(3000),
}
"""Cases that `raymtl data inspect c.yaml` is run on, in this process."""

OTHERS = {
    "F15-moved-data",
    "G20-transfer-words",
    "G21-transfer-reg-large",
    "G23-transfer-single-class",
    "G28-transfer-reg-nan",
    "H07-locale",
}
"""Cases that have a test of their own."""
