"""The JSON Schema of a configuration, which editors read, and the outline too."""

import ast
import inspect
import re
import textwrap
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from raymtl.schema.base import ExperimentBase
from raymtl.schema.readers import READ_BY
from raymtl.storage.yaml_text import read_yaml

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_EXAMPLE = re.compile(r"\n\nExample: `(?P<example>[^`]+)`")


def json_schema(root: type[ExperimentBase]) -> dict[str, Any]:
    """The schema of a configuration, with what the docstrings say of sections and keys."""
    schema = root.model_json_schema(schema_generator=_WithDocstrings)
    return {"$schema": DIALECT, **schema, "title": "A configuration of raymtl"}


class _WithDocstrings(GenerateJsonSchema):
    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        json_schema = super().model_schema(schema)
        described, example = _description(schema["cls"])
        json_schema["description"] = described
        if example:
            json_schema["examples"] = [example]
        docstrings = _docstrings(schema["cls"])
        for name, value in json_schema["properties"].items():
            if name in docstrings:
                value["description"] = docstrings[name]
        if "const" in json_schema["properties"].get("name", {}):
            json_schema["required"] = ["name", *json_schema.get("required", ())]
        return json_schema

    def field_title_should_be_set(self, schema: Any) -> bool:
        """An editor shows the key."""
        return False

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> Any:
        """Names the function that reads a value first, unless it says what it accepts."""
        json_schema = super().function_before_schema(schema)
        if "json_schema_input_schema" in schema:
            return json_schema
        return {**json_schema, "$comment": READ_BY + schema["function"]["function"].__name__}


def _description(section: type[BaseModel]) -> tuple[str, Any]:
    """What the docstring of a section says, and the value in its example; None without one."""
    docstring = inspect.cleandoc(section.__doc__ or "")
    example = _EXAMPLE.search(docstring)
    if not example:
        return docstring, None
    values = read_yaml(example["example"])
    if isinstance(values, dict):  # {SECTION: values}
        (values,) = values.values()
    return docstring.replace(example[0], ""), values


def _docstrings(section: type[BaseModel]) -> dict[str, str]:
    """Field -> the text below it in the source, those of the classes that it inherits from too."""
    docstrings: dict[str, str] = {}
    for parent in reversed(section.__mro__):
        if issubclass(parent, BaseModel) and parent is not BaseModel:
            docstrings |= _own_docstrings(parent)
    return docstrings


def _own_docstrings(section: type[BaseModel]) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    docstrings: dict[str, str] = {}
    name = ""
    for statement in getattr(definition, "body", ()):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
        elif name and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            docstrings[name] = inspect.cleandoc(str(statement.value.value))
            name = ""
        else:
            name = ""
    return docstrings
