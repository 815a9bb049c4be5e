"""The list of methods is made from the specs, and the page in docs/ is that list."""

from pathlib import Path
from typing import get_args

import pytest

from raymtl.cli.show import SECTIONS
from raymtl.config.catalog import HEADINGS, UNIONS, markdown, methods

PAGE = Path(__file__).parent.parent.parent / "docs" / "methods.md"


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == markdown(), "run: raymtl methods --markdown > docs/methods.md"


def test_every_section_with_methods_can_be_listed() -> None:
    assert tuple(HEADINGS) == tuple(UNIONS) == SECTIONS


@pytest.mark.parametrize("section", HEADINGS)
def test_every_member_has_a_whole_row(section: str) -> None:
    rows = list(methods(section))
    assert len(rows) == len(get_args(get_args(UNIONS[section])[0]))
    for row in rows:
        assert all((row.name, row.what, row.paper, row.cost, row.helps)), row
        assert "\n" not in row.what + row.paper + row.helps
        assert len(row.what) < 160, f"{row.name}: {row.what}"


def test_gradients_cost_a_backward_pass_a_task() -> None:
    costs = {row.name: row.cost for row in methods("weighting")}
    assert (
        costs["static"] == "1"
        and costs["pcgrad"] == "K"
        and costs["famo"] == "1, and a forward pass"
    )
    trunks = {row.name: row.cost for row in methods("sharing")}
    assert trunks["hard"] == "1" and trunks["cross_stitch"] == "3"
