"""Scores on held-out examples, their intervals, and what they are compared with."""
