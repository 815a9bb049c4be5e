"""README, CHANGELOG and docs/ against the repository: links, keys, commands, options."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from raymtl.cli import app
from raymtl.config import Experiment
from raymtl.schema.names import is_known

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"])
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
SPAN = re.compile(r"`([^`]+)`")
SECTIONS = "data|encoder|sharing|weighting|learner|mode|train|evaluate|tune"
KEY = re.compile(rf"(?:`|--set '?)((?:{SECTIONS})\.[a-z_.]+)[`=]")
COMMAND = re.compile(r"(?:^|&& |\$on |/)raymtl ((?:data |cluster )?[a-z]+)\b([^#|\n]*)", re.M)
OPTION = re.compile(r"(?:^| )(--[a-z][a-z-]*)")


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


def dead_links(page: Path) -> Iterator[str]:
    """The relative links of a page that lead nowhere."""
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page
        if path:
            target = (page.parent / path).resolve()
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            yield link


def unknown_keys(text: str) -> list[str]:
    """The dotted keys in a text that no configuration can have."""
    return [key for key in sorted(set(KEY.findall(text))) if not is_known(key, Experiment)]


def unknown_commands(text: str) -> Iterator[str]:
    """The commands in a text that raymtl does not have, and options that a command lacks."""
    blocks = [block.replace("\\\n", " ") for _, block in FENCE.findall(text)]
    spans = [span.replace("\n", " ") for span in SPAN.findall(FENCE.sub("", text))]
    for name, rest in COMMAND.findall("\n".join([*blocks, *spans])):
        command: Any = typer.main.get_command(app)
        for word in name.split():
            if isinstance(command, TyperGroup):
                command = command.commands.get(word)
        if command is None:
            yield name
            continue
        options = {option for parameter in command.params for option in parameter.opts}
        yield from (f"{name} {option}" for option in OPTION.findall(rest) if option not in options)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(dead_links(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_dotted_key_exists(page: Path) -> None:
    assert unknown_keys(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_shown_command_exists(page: Path) -> None:
    assert list(unknown_commands(page.read_text())) == []


def test_what_does_not_exist_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`\n[a](#one-two) [b](#three) [c](none.md) [d](https://e)\n")
    assert list(dead_links(page)) == ["#three", "none.md"]
    assert unknown_keys("`train.steps`, `train.stepps` or --set tune.trails=3") == [
        "train.stepps",
        "tune.trails",
    ]
    shown = (
        "```\nraymtl fly\nraymtl tune a.yaml --resum \\\n  --set a=1\n```\n`raymtl data inspekt x`"
    )
    assert list(unknown_commands(shown)) == ["fly", "tune --resum", "data inspekt"]


def test_pages_named_in_code_exist() -> None:
    files = [*ROOT.glob("raymtl/**/*.py"), *ROOT.glob("tune_configs/*"), *ROOT.glob("clusters/*")]
    named = {name for path in files for name in re.findall(r"docs/[\w-]+\.md", path.read_text())}
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
