"""Predictions of rows that a run never saw: any number of them, block by block."""
