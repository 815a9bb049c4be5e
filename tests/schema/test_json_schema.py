"""The shipped JSON Schema: what it says is what the specs say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from raymtl.config import Experiment
from raymtl.schema.json_schema import json_schema
from raymtl.schema.outline import PATH
from raymtl.storage import strict_json
from raymtl.storage.yaml_text import read_yaml

SCHEMA = json.loads(PATH.read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
CONFIGS = sorted((Path(__file__).parent.parent.parent / "tune_configs").glob("*.yaml"))
SECTIONS = [section for section in SCHEMA["$defs"].values() if "properties" in section]


def test_the_file_is_what_the_code_says() -> None:
    text = strict_json.dumps(json_schema(Experiment), indent=2) + "\n"
    assert PATH.read_text() == text, "run: raymtl schema > raymtl/schema/schema.json"


def test_it_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$id"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path: Path) -> None:
    VALIDATOR.validate(read_yaml(path.read_text()))


@pytest.mark.parametrize(
    "tree",
    [
        {"leaner": {"name": "maml"}},
        {"learner": {"name": "mamll"}},
        {"learner": {"inner_lr": 0.1}},
        {"learner": {"name": "reptile", "first_order": True}},
        {"train": {"steps": "many"}},
        {"train": {"steps": 0}},
        {"search": {"learner.inner_lr": {"unform": [0, 1]}}},
    ],
)
def test_mistakes_are_not_valid(tree: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(tree)


def optional_values() -> Iterator[tuple[str, str, Any]]:
    for section in SECTIONS:
        for key, field in section["properties"].items():
            if key not in section.get("required", ()):
                yield section["title"], key, field


def test_optional_keys_have_their_default() -> None:
    """The outline takes a key without a default for one that must be given."""
    assert [(title, key) for title, key, field in optional_values() if "default" not in field] == []


def test_sections_say_what_they_are() -> None:
    assert [section["title"] for section in SECTIONS if not section.get("description")] == []
    methods = [section for section in SECTIONS if "name" in section.get("required", ())]
    assert sum("examples" in section for section in methods) > 60


def test_keys_say_what_they_are() -> None:
    steps = SCHEMA["$defs"]["Train"]["properties"]["meta_batch"]
    assert steps["description"] == "The number of episodes in a step, over all workers."
    inherited = SCHEMA["$defs"]["ConvSpec"]["properties"]["transductive"]
    assert inherited["description"].startswith("Whether a query is normalised by the statistics")
