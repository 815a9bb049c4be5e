"""What requests may hold, and what is kept of them."""

import json
from typing import Any

import pytest

from raymtl.serving.least_recent import LeastRecent
from raymtl.serving.request_body import query_of, read_body, support_of
from raymtl.types import UserError


def test_what_was_not_used_goes_first() -> None:
    kept: LeastRecent[str] = LeastRecent(10)
    kept.put("a", "A", 4)
    kept.put("b", "B", 4)
    assert kept.get("a") == "A"
    kept.put("c", "C", 4)
    assert (kept.get("b"), kept.get("a"), kept.get("c")) == (None, "A", "C")
    kept.put("a", "A2", 6)
    assert (kept.get("a"), len(kept), kept.bytes) == ("A2", 2, 10)
    assert kept.drop("c") and not kept.drop("c")
    kept.put("large", "L", 99)
    assert ("a" in kept, kept.get("large"), kept.bytes) == (False, "L", 99)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "rows: expected a list of rows"),
        ({"rows": []}, "rows: expected a list of rows"),
        ({"rows": {"x": 1}}, "rows: expected a list of rows"),
        ({"rows": [1]}, "row 0: expected cells by their columns, got 1"),
        ({"rows": [{"x": 1}, {}]}, "row 1: expected cells by their columns"),
        ({"rows": [{"x": {"y": 1}}]}, "row 0, column 'x': expected a number, a text or null"),
        ({"rows": [{"x": 1}] * 4}, "at most 3, got 4. Send several requests"),
        ({"rows": [{"x": 1}], "modl": "m"}, "modl: unknown key. Expected rows, model"),
        ({"rows": [{"x": 1}], "model": 3}, "model: expected what /adapt answered"),
    ],
)
def test_queries_that_cannot_be_are_refused(content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        query_of(content, 3)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"steps": -1}, "steps: expected a number of inner steps"),
        ({"steps": True}, "steps: expected a number of inner steps"),
        ({"steps": 10**9}, "steps: expected a number of inner steps"),
        ({"task": 1}, "task: expected the name of a task"),
        ({"model": "m"}, "model: unknown key"),
    ],
)
def test_supports_that_cannot_be_are_refused(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        support_of({"rows": [{"x": 1}], **more}, 3)


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_bodies_that_are_no_object_are_refused(body: bytes) -> None:
    with pytest.raises(UserError, match="expected a JSON object"):
        read_body(body)


def test_a_handle_says_what_was_learned() -> None:
    first = support_of({"rows": [{"x": 1, "y": 2}]}, 3)
    again = support_of(json.loads(b'{"rows": [{"y": 2, "x": 1}]}'), 3)
    assert first.handle == again.handle
    others = [
        support_of({"rows": [{"x": 1, "y": 3}]}, 3),
        support_of({"rows": [{"x": 1, "y": 2}], "steps": 1}, 3),
        support_of({"rows": [{"x": 1, "y": 2}], "task": "y"}, 3),
    ]
    assert len({first.handle, *(other.handle for other in others)}) == 4
