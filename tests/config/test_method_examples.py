"""The example in the docstring of every method and encoder is a part of a valid configuration."""

import inspect
import re
from typing import Any, get_args

import pytest
import yaml

from raymtl.config import Experiment
from raymtl.config.catalog import UNIONS
from raymtl.encoders import EncoderSpec
from tests.conftest import experiment

EXAMPLE = re.compile(r"Example: `(.+)`")
SPECS = [
    pytest.param(section, spec, id=f"{section}-{spec.model_fields['name'].default}")
    for section, union in {**UNIONS, "encoder": EncoderSpec}.items()
    for spec in get_args(get_args(union)[0])
]


def example_of(spec: Any) -> dict[str, Any]:
    """The last paragraph of the docstring, read as YAML."""
    paragraph = inspect.cleandoc(spec.__doc__).split("\n\n")[-1].replace("\n", " ")
    match = EXAMPLE.fullmatch(paragraph)
    assert match, f"expected 'Example: `YAML`' as the last paragraph, got {paragraph!r}"
    parsed: dict[str, Any] = yaml.safe_load(match[1])
    return parsed


@pytest.mark.parametrize(("section", "spec"), SPECS)
def test_example_is_valid(section: str, spec: Any) -> None:
    if spec.model_fields["name"].default == "timm":
        pytest.importorskip("timm", reason="timm is not installed (the extra raymtl[vision])")
    parsed = example_of(spec)
    assert list(parsed) == [section]
    built = spec.model_validate(parsed[section])
    assert built.name == spec.model_fields["name"].default
    tree = experiment(data__tasks=["left", "right"]).model_dump(mode="json") | parsed
    assert getattr(Experiment.model_validate(tree), section) == built


@pytest.mark.parametrize(("section", "spec"), SPECS)
def test_example_shows_own_keys(section: str, spec: Any) -> None:
    """It sets a hyperparameter to another value than the default, where there is one."""
    values = spec.model_validate(example_of(spec)[section]).model_dump()
    if len(values) > 1:
        assert values != spec().model_dump()
