"""The JSON of requests, checked."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from raymtl.serving.messages import Query, Rows, Support
from raymtl.storage import strict_json
from raymtl.types import UserError

PREDICT_KEYS = ("rows", "model")
ADAPT_KEYS = ("rows", "steps", "task")


def read_body(body: bytes) -> Mapping[str, Any]:
    """The JSON object. Raises UserError for another text."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError('expected a JSON object such as {"rows": [{...}]}, got something else.')
    return content


def query_of(content: Mapping[str, Any], most_rows: int) -> Query:
    """What /predict is asked. Raises UserError."""
    _check_keys(content, PREDICT_KEYS)
    handle = content.get("model")
    if handle is not None and not isinstance(handle, str):
        raise UserError(f"model: expected what /adapt answered as 'model', got {handle!r:.80}.")
    return Query(_rows(content, most_rows), handle)


def support_of(content: Mapping[str, Any], most_rows: int) -> Support:
    """What /adapt is asked; equal support sets have equal handles. Raises UserError."""
    _check_keys(content, ADAPT_KEYS)
    rows, steps, task = _rows(content, most_rows), content.get("steps"), content.get("task")
    if steps is not None and (type(steps) is not int or not 0 <= steps <= 10_000):
        raise UserError(f"steps: expected a number of inner steps up to 10000, got {steps!r:.80}.")
    if task is not None and not isinstance(task, str):
        raise UserError(f"task: expected the name of a task, got {task!r:.80}.")
    text = strict_json.dumps([[sorted(row.items()) for row in rows], steps, task])
    handle = "m-" + hashlib.sha256(text.encode()).hexdigest()[:24]
    return Support(handle, rows, steps, task)


def _check_keys(content: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in content:
        if key not in known:
            raise UserError(f"{key:.80}: unknown key. Expected {', '.join(known)}.")


def _rows(content: Mapping[str, Any], most: int) -> Rows:
    rows = content.get("rows")
    if not isinstance(rows, list) or not rows:
        raise UserError('rows: expected a list of rows such as [{"area": 70}], got none.')
    if len(rows) > most:
        raise UserError(f"rows: expected at most {most}, got {len(rows)}. Send several requests.")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not row:
            raise UserError(
                f"rows: row {number}: expected cells by their columns, got {row!r:.80}."
            )
        for name, cell in row.items():
            if isinstance(cell, dict):
                raise UserError(
                    f"rows: row {number}, column '{name:.80}': expected a number, a text or null, "
                    "got an object."
                )
    return rows
