"""The Experiment: one YAML file, validated once; load, override, save."""

from raymtl.config.experiment import Experiment, StageConfig, parse
from raymtl.config.load import load
from raymtl.schema.component_modules import import_plugins
from raymtl.schema.names import dotted_names, is_known
from raymtl.schema.space import check_space

__all__ = ["Experiment", "StageConfig", "check_space", "dotted_names", "is_known", "load", "parse"]

import_plugins()
