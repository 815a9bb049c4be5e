"""Trackers of other makers, which get the numbers of a run from its folder."""
