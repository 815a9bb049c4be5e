"""`raymtl cluster render`: a shipped cluster file with its placeholders filled, its comments kept."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

from raymtl.cluster.files.documents import PLACEHOLDER
from raymtl.cluster.files.templates import SHIPPED, Question
from raymtl.types import UserError

Ask = Callable[[str, Question], str]


def render(target: str, given: Mapping[str, str], ask: Ask | None, folder: Path) -> str:
    """The file of `target`, a key of `SHIPPED`, with every placeholder filled.

    `given` are answers by question; `ask` gets the others, or is None where nobody can be asked.
    `folder` is the checkout. Raises UserError for a target or a question that there is not, and an
    answer that is missing or will not do.
    """
    if target not in SHIPPED:
        raise UserError(f"render: expected one of {', '.join(SHIPPED)}, got '{target}'.")
    shipped = SHIPPED[target]
    for name in given:
        if name not in shipped.questions:
            near = difflib.get_close_matches(name, shipped.questions, n=1)
            if near:
                hint = f" Did you mean {near[0]}?"
            else:
                hint = ""
            raise UserError(f"--set {name}: expected one of {', '.join(shipped.questions)}.{hint}")
    path = folder / shipped.path
    if not path.is_file():
        raise UserError(
            f"{path}: no such file. Run `raymtl cluster render` in raymtl's checkout, as `ray up` "
            "too."
        )
    missing = [name for name in shipped.questions if name not in given]
    if missing and ask is None:
        raise UserError(
            f"render {target}: expected a value for {', '.join(missing)}, got none. Give --set "
            "NAME=VALUE for each, or run it in a terminal, which asks."
        )
    answers = {}
    for name, question in shipped.questions.items():
        if ask is None or name in given:
            answer = given[name]
        else:
            answer = ask(name, question)
        why = why_invalid(question, answer)
        if why:
            raise UserError(f"{name}: {why}")
        answers[name] = _values(question, answer)
    filled = fill(path.read_text(encoding="utf8"), answers)
    return f"# Written by `raymtl cluster render {target}`: nothing is left to replace.\n{filled}"


def why_invalid(question: Question, answer: str) -> str | None:
    """What is wrong with the answer; None where it will do."""
    for value in _values(question, answer):
        expected = question.judge(value)
        if expected:
            return f"expected {expected}, got '{value}'."
    return None


def _values(question: Question, answer: str) -> list[str]:
    if not question.several:
        return [answer.strip()]
    if answer.strip() == "none":
        return []
    return [value.strip() for value in answer.split(",")]


def fill(text: str, answers: Mapping[str, list[str]]) -> str:
    """Puts answers where the placeholders stand, in comments too; several, or none, make as many
    lines of one.
    """
    lines = []
    for line in text.splitlines():
        names = [name.lower() for name in PLACEHOLDER.findall(line)]
        for values in _rows([answers[name] for name in names]):
            chosen = dict(zip(names, values, strict=True))
            parts = PLACEHOLDER.split(line)  # text and names in turn
            parts[1::2] = [chosen[name.lower()] for name in parts[1::2]]
            lines.append("".join(parts))
    return "\n".join(lines) + "\n"


def _rows(columns: list[list[str]]) -> list[tuple[str, ...]]:
    """The answers of each line that one with these placeholders becomes."""
    length = min((len(column) for column in columns if len(column) != 1), default=1)
    return [
        tuple(column[row if len(column) > 1 else 0] for column in columns) for row in range(length)
    ]
