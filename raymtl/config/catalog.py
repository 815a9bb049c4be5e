"""The catalog of methods: one row for each, read off the unions of specs, so that it cannot go
stale.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args, get_type_hints

from raymtl.learners import LearnerSpec
from raymtl.modes import ModeSpec
from raymtl.schema.components import registered
from raymtl.sharing import SharingSpec
from raymtl.sharing.base import SharingSpecBase
from raymtl.weighting import WeightingSpec
from raymtl.weighting.base import WeightingSpecBase

UNIONS: dict[str, Any] = {
    "sharing": SharingSpec,
    "weighting": WeightingSpec,
    "learner": LearnerSpec,
    "mode": ModeSpec,
}
TASKS = 3  # for which the copies of the encoder are counted


class Method(NamedTuple):
    """A row of the catalog."""

    section: str
    name: str
    keys: tuple[str, ...]
    what: str
    """One sentence, the first of the class."""
    paper: str
    cost: str
    helps: str


def methods(section: str) -> Iterator[Method]:
    """The members of a union, and the registered components of its section, by name."""
    members = (*get_args(get_args(UNIONS[section])[0]), *registered(section).values())
    for spec in sorted(members, key=lambda member: member.model_fields["name"].default):
        described = spec
        if hasattr(spec, "build"):
            described = get_type_hints(spec.build).get("return", spec)
        what = _first_paragraph(described.__doc__ or spec.__doc__)
        yield Method(
            section,
            spec.model_fields["name"].default,
            tuple(key for key in spec.model_fields if key != "name"),
            re.split(r"(?<=[.:])\s", what)[0].rstrip(".:"),
            _paper(_first_paragraph(sys.modules[spec.__module__].__doc__)),
            _cost(spec),
            getattr(spec, "helps", ""),
        )


def _first_paragraph(docstring: str | None) -> str:
    return inspect.cleandoc(docstring or "").split("\n\n")[0].replace("\n", " ")


def _paper(paragraph: str) -> str:
    """The paper that a module names first, or else what the module is about."""
    paper = re.match(r"[^(]*\([^()]*\)", paragraph)
    if paper:
        return paper[0]
    return paragraph.split(":")[0].rstrip(".")


def _cost(spec: Any) -> str:
    """The backward passes through the trunk for a weighting, the copies of the encoder for an
    architecture, and the spec's own words for other methods.
    """
    if issubclass(spec, WeightingSpecBase):
        if spec.needs_gradients:
            backward = "K"
        else:
            backward = "1"
        if spec.needs_post_step_losses:
            return f"{backward}, and a forward pass"
        return backward
    if issubclass(spec, SharingSpecBase):
        return str(spec().num_encoders(TASKS))
    return str(getattr(spec, "costs", ""))


HEADINGS = {
    "sharing": (
        "How tasks share: `sharing.name`",
        f"Cost: copies of the encoder that the architecture is made of, for {TASKS} tasks.",
    ),
    "weighting": (
        "How tasks are weighed: `weighting.name`",
        "Cost: backward passes through the trunk in a step, for K tasks. Methods with K weigh the "
        "gradients of the\nshared parameters and leave each head its own gradient; the others "
        "weigh the losses.",
    ),
    "learner": (
        "How it learns to learn: `learner.name`",
        "Cost: of an episode in a step, for k inner steps.",
    ),
    "mode": (
        "How steps follow the joint loss: `mode.name`",
        "Cost: of a step against that of `weighted`.",
    ),
}


def markdown() -> str:
    """docs/methods.md."""
    parts = [
        "# Methods\n\nMade by `raymtl methods --markdown > docs/methods.md` from the code; a test "
        "compares the two. Every method works with\nevery other, or is refused when the "
        "configuration is loaded, with the reason.\n"
    ]
    for section, (heading, about) in HEADINGS.items():
        parts.append(
            f"\n## {heading}\n\n{about}\n\n| name | what it does | cost | when it helps | keys | "
            "source |"
        )
        parts.append("|---|---|---|---|---|---|")
        for row in methods(section):
            keys = ", ".join(f"`{key}`" for key in row.keys)
            cells = (f"`{row.name}`", row.what, row.cost, row.helps, keys, _linked(row.paper))
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(parts) + "\n"


def _linked(paper: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)
