"""`files`: the user's own tables and pictures."""

from raymtl.data.tables.fitted_column import FittedColumn
from raymtl.data.tables.schema import Fitted, FittedTask, SplitRule, TaskColumn
from raymtl.data.tables.source import Files

__all__ = ["Files", "Fitted", "FittedColumn", "FittedTask", "SplitRule", "TaskColumn"]
