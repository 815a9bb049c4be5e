"""Mistakes that are found without the methods, before torch is imported."""

import glob
import os
from collections.abc import Mapping
from typing import Any

from raymtl.schema.base import ExperimentBase
from raymtl.schema.component_modules import plugins
from raymtl.schema.components import all_registered
from raymtl.schema.document import located, parse_document
from raymtl.schema.outline import outline
from raymtl.schema.space import check_combination, check_names, combinations
from raymtl.schema.stages import check_stage_keys, in_stage
from raymtl.storage.places import absolute, expand, nothing_at
from raymtl.storage.yaml_document import Document


def check_outline(document: Document, overrides: Mapping[str, Any]) -> None:
    """Raises the UserError that the complete check would raise, for keys, names and a file of data
    that do not exist and for values of another type.

    The outline knows no components of the user's own. Where there are any it says nothing.
    """
    if plugins() or any(all_registered()):
        return
    config = parse_document(outline(), document, overrides)
    located(lambda: _check_path(config.data), document, frozenset(overrides))
    located(lambda: _check_stages(config), document)
    located(lambda: _check_space(config), document)


def _check_path(data: Any) -> None:
    """Raises UserError where `data.path` names one file of this machine that does not exist."""
    given = data.name == "files" and isinstance(data.path, str) and data.path and data.tasks
    if not given or data.fitted is not None:
        return
    path = expand(absolute(data.path, "data.path"), "data.path")
    if "://" not in path and not glob.has_magic(path) and not os.path.exists(path):
        raise nothing_at(path, "data.path")


def _check_stages(config: ExperimentBase) -> None:
    check_stage_keys(config.stages)
    alone = config.model_copy(update={"stages": (), "search": {}})
    for number, stage in enumerate(config.stages):
        in_stage(alone, stage, number)


def _check_space(config: ExperimentBase) -> None:
    """Checks the space, each value in the first combination that has it."""
    check_names(config)
    seen: set[tuple[str, str]] = set()
    for values in combinations(config):
        pairs = {(key, repr(value)) for key, value in values.items()}
        if not pairs <= seen:
            check_combination(config, values)
        seen |= pairs
