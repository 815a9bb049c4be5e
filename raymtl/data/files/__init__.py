"""`files`: the user's own tables and pictures."""

from raymtl.data.files.schema import Fitted, FittedColumn, FittedTask, SplitRule, TaskColumn
from raymtl.data.files.source import Files

__all__ = ["Files", "Fitted", "FittedColumn", "FittedTask", "SplitRule", "TaskColumn"]
