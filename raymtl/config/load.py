"""From a YAML file to an Experiment, with the file and the line of what is wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymtl.config.experiment import Experiment
from raymtl.schema.component_modules import check_known
from raymtl.schema.document import located, parse_document
from raymtl.schema.space import check_space
from raymtl.storage.yaml_document import Document, read_document


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Reads and validates a YAML file, then applies `--set` overrides.

    Raises UserError that names the file, the line and the dotted key. Every combination that the
    search could suggest is checked too.
    """
    document = read_document(path)
    check_known(document.tree, _recorded(path), path)
    return load_document(document, overrides or {})


def _recorded(path: Path) -> Mapping[str, Any]:
    """The components of the user's own that made the run of a saved configuration."""
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        about = folder / "environment.json"
        if about.is_file():
            from raymtl.storage.formats import read_json  # the core needs no pyarrow

            recorded: Mapping[str, Any] = read_json(about).get("components", {})
            return recorded
    return {}


def load_document(document: Document, overrides: Mapping[str, Any]) -> Experiment:
    """Validates what a file holds, with the overrides in it; see `load`."""
    experiment = parse_document(Experiment, document, overrides)
    located(lambda: check_space(experiment), document)
    return experiment
