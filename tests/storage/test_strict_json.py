"""No NaN and no Infinity in any JSON that is written."""

import ast
import json
import math
from pathlib import Path

import pytest

from raymtl.storage import formats, strict_json

ROOT = Path(__file__).parent.parent.parent / "raymtl"
OTHERS = {
    "storage/optuna_journal.py": "Optuna reads it back, NaN included",
    "data/tables/settings.py": "a digest, which nobody reads",
    "data/prepared/plan.py": "a digest, which nobody reads",
    "reporting/html/values.py": "text in a cell",
    "schema/distributions.py": "names of choices",
}
"""Modules that call json.dumps themselves, and why they may."""


def refused(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_infinite_numbers_are_null(number: float) -> None:
    """At any depth."""
    text = strict_json.dumps({"a": [number, (1.5, {"b": number})], "c": 2, "d": None})
    assert json.loads(text, parse_constant=refused) == {
        "a": [None, [1.5, {"b": None}]],
        "c": 2,
        "d": None,
    }


def test_run_files_have_null_for_infinite(tmp_path: Path) -> None:
    formats.write_json(tmp_path / "summary.json", {"score": math.nan})
    formats.append_row(tmp_path / "events.jsonl", {"score": math.inf})
    for name in ("summary.json", "events.jsonl"):
        assert json.loads((tmp_path / name).read_text(), parse_constant=refused)["score"] is None


def test_json_is_written_by_one_module_alone() -> None:
    calls = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.dump", "json.dumps"):
                calls.add(path.relative_to(ROOT).as_posix())
    assert calls == {"storage/strict_json.py", *OTHERS}
