"""A run folder as tables, plots and one HTML page that needs no network. Starts no Ray."""

from raymtl.reporting.html.page import write_report
from raymtl.reporting.html.tables import Cell, Estimate, ResultRow, protocol, result_rows
from raymtl.reporting.html.verdict import outcome

__all__ = ["Cell", "Estimate", "ResultRow", "outcome", "protocol", "result_rows", "write_report"]
