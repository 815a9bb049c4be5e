"""Every example in the docstrings of the configuration's sections is a valid configuration."""

import re

import pytest

from raymtl.config import check_space, parse, sections
from raymtl.schema import distributions, stages
from raymtl.storage.yaml_text import read_yaml
from raymtl.types import Spec

SPECS = [
    spec
    for module in (sections, distributions, stages)
    for spec in vars(module).values()
    if isinstance(spec, type)
    and issubclass(spec, Spec)
    and spec.__module__ == module.__name__
    and spec.model_fields
    and not spec.__name__.endswith("Base")
    and not spec.__name__.startswith("_")
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
def test_example_is_valid(spec: type[Spec]) -> None:
    examples = re.findall(r"Example: `(.*)`", spec.__doc__ or "")
    assert examples
    for example in examples:
        experiment = parse(read_yaml(example))
        check_space(experiment)
