"""`raymtl cluster render`: fills the placeholders of a shipped cluster file, keeps its comments."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

from raymtl.cluster.files.documents import PLACEHOLDER
from raymtl.cluster.files.templates import TEMPLATES, Question
from raymtl.types import UserError

Ask = Callable[[str, Question], str]


def render(target: str, given: Mapping[str, str], ask: Ask | None, folder: Path) -> str:
    """Fills every placeholder of the file of `target`, a key of `TEMPLATES`.

    `given` are values by question; `ask` gets the others, or is None where nobody can be asked.
    `folder` is the checkout. Raises UserError for an unknown target or question, and for a value
    that is missing or invalid.
    """
    if target not in TEMPLATES:
        raise UserError(f"render: expected one of {', '.join(TEMPLATES)}, got '{target}'.")
    questions = TEMPLATES[target].questions
    for name in given:
        if name not in questions:
            near = difflib.get_close_matches(name, questions, n=1)
            hint = ""
            if near:
                hint = f" Did you mean {near[0]}?"
            raise UserError(f"--set {name}: expected one of {', '.join(questions)}.{hint}")
    path = folder / TEMPLATES[target].path
    if not path.is_file():
        raise UserError(
            f"{path}: no such file. Run `raymtl cluster render` in raymtl's checkout, as `ray up` "
            "too."
        )
    missing = [name for name in questions if name not in given]
    if missing and ask is None:
        raise UserError(
            f"render {target}: expected a value for {', '.join(missing)}, got none. Give --set "
            "NAME=VALUE for each, or run it in a terminal, which asks."
        )
    filled = fill(path.read_text(encoding="utf8"), _collect(questions, given, ask))
    return f"# Written by `raymtl cluster render {target}`: nothing is left to replace.\n{filled}"


def _collect(
    questions: Mapping[str, Question], given: Mapping[str, str], ask: Ask | None
) -> dict[str, list[str]]:
    """The values of each question, given or asked for; raises UserError for an invalid one."""
    values = {}
    for name, question in questions.items():
        if ask is None or name in given:
            value = given[name]
        else:
            value = ask(name, question)
        reason = why_invalid(question, value)
        if reason:
            raise UserError(f"{name}: {reason}")
        values[name] = _split(question, value)
    return values


def why_invalid(question: Question, value: str) -> str | None:
    """What is wrong with the value; None where nothing is."""
    for each in _split(question, value):
        expected = question.validate(each)
        if expected:
            return f"expected {expected}, got '{each}'."
    return None


def _split(question: Question, value: str) -> list[str]:
    if not question.several:
        return [value.strip()]
    if value.strip() == "none":
        return []
    return [each.strip() for each in value.split(",")]


def fill(text: str, values: Mapping[str, list[str]]) -> str:
    """Replaces the placeholders, in comments too; a line becomes as many as its placeholder has
    values.
    """
    lines = []
    for line in text.splitlines():
        names = [name.lower() for name in PLACEHOLDER.findall(line)]
        for row in _rows([values[name] for name in names]):
            pieces = PLACEHOLDER.split(line)  # text and names in turn
            pieces[1::2] = row
            lines.append("".join(pieces))
    return "\n".join(lines) + "\n"


def _rows(columns: list[list[str]]) -> list[list[str]]:
    """The values of each line that one with these placeholders becomes."""
    lengths = [len(column) for column in columns if len(column) != 1]
    rows = []
    for index in range(min(lengths, default=1)):
        row = []
        for column in columns:
            if len(column) > 1:
                row.append(column[index])
            else:
                row.append(column[0])
        rows.append(row)
    return rows
