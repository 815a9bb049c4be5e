"""The outline of a configuration: its keys, names of methods and plain types, read from
schema.json.

It is made without importing a method, accepts all that the Experiment accepts, and refuses the rest
by the same functions, so that the words are the same.
"""

import json
from collections.abc import Mapping
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, create_model

from raymtl.schema.base import ExperimentBase, RunName
from raymtl.schema.distributions import Space
from raymtl.schema.readers import READ_BY, READERS
from raymtl.schema.stages import StageSection
from raymtl.types import Spec

PATH = Path(__file__).with_name("schema.json")
PLAIN: dict[str, Any] = {
    "boolean": bool,
    "integer": int,
    "null": None,
    "number": float,
    "string": str,
}
LIMITS = {
    "exclusiveMaximum": "lt",
    "exclusiveMinimum": "gt",
    "maximum": "le",
    "maxItems": "max_length",
    "maxLength": "max_length",
    "minimum": "ge",
    "minItems": "min_length",
    "minLength": "min_length",
    "minProperties": "min_length",
    "multipleOf": "multiple_of",
}
"""Keyword of JSON Schema -> argument of pydantic's Field."""


class _Section(Spec):
    """The base of all sections; their validators are built together with the outline's."""

    model_config = ConfigDict(defer_build=True)


class _Outline(ExperimentBase):
    """The base of the outline."""

    model_config = ConfigDict(defer_build=True)


def outline() -> type[ExperimentBase]:
    """The class of the outline."""
    schema = json.loads(PATH.read_text(encoding="utf8"))
    fields = _Reader(schema["$defs"]).fields(schema)
    fields |= {
        "name": (RunName, "run"),
        "stages": (tuple[StageSection, ...], ()),
        "search": (Space, {}),
    }
    return create_model("Experiment", __base__=_Outline, **fields)


class _Reader:
    """Reads types from JSON Schema as pydantic writes it. What it does not know can be anything."""

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self.definitions = definitions
        self.sections: dict[str, type[Spec]] = {}

    def fields(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The annotation and the default of each field."""
        return {
            name: (self.annotation(field), field.get("default", ...))
            for name, field in schema["properties"].items()
        }

    def annotation(self, schema: Mapping[str, Any]) -> Any:
        """The type of a value."""
        if "$comment" in schema:
            return self._read_first(schema)
        if "$ref" in schema:
            return self._definition(schema["$ref"].rpartition("/")[2])
        limits = {LIMITS[key]: limit for key, limit in schema.items() if key in LIMITS}
        plain = self._without_limits(schema)
        if limits and "prefixItems" not in schema:
            return Annotated[plain, Field(**limits)]
        return plain

    def _read_first(self, schema: Mapping[str, Any]) -> Any:
        """The type of a value that a function reads first; of most only the Experiment has it."""
        reader = READERS.get(schema["$comment"].removeprefix(READ_BY))
        if reader is None:
            return Any
        rest = {key: value for key, value in schema.items() if key != "$comment"}
        return Annotated[self.annotation(rest), BeforeValidator(reader)]

    def _definition(self, name: str) -> Any:
        schema = self.definitions[name]
        if "properties" not in schema:
            return self.annotation(schema)
        if name not in self.sections:
            self.sections[name] = create_model(name, __base__=_Section, **self.fields(schema))
        return self.sections[name]

    def _without_limits(self, schema: Mapping[str, Any]) -> Any:
        if "oneOf" in schema:
            return Annotated[self._union(schema["oneOf"]), Field(discriminator="name")]
        if "anyOf" in schema:
            return self._union(schema["anyOf"])
        if "const" in schema:
            return Literal[schema["const"]]
        if "enum" in schema:
            return Literal[tuple(schema["enum"])]
        if schema.get("type") == "array":
            return self._tuple(schema)
        if schema.get("type") == "object":
            return self._mapping(schema)
        kind = schema.get("type", "")
        if isinstance(kind, list):  # a function reads all of them as the first
            kind = kind[0]
        return PLAIN.get(kind, Any)

    def _union(self, schemas: list[Any]) -> Any:
        return reduce(or_, [self.annotation(schema) for schema in schemas])

    def _tuple(self, schema: Mapping[str, Any]) -> Any:
        generic: Any = tuple  # subscripted while the program runs
        if "prefixItems" in schema:
            return generic[tuple(self.annotation(item) for item in schema["prefixItems"])]
        return generic[self.annotation(schema["items"]), ...]

    def _mapping(self, schema: Mapping[str, Any]) -> Any:
        key = self.annotation(schema.get("propertyNames", {"type": "string"}))
        value = Any
        if isinstance(schema.get("additionalProperties"), Mapping):
            value = self.annotation(schema["additionalProperties"])
        generic: Any = Mapping
        return generic[key, value]
