"""Whole runs: search, training, comparison, report."""

import raymtl.distributed  # noqa: F401  (sets what Ray reads when it is imported)
