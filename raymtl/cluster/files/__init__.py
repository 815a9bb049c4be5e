"""Cluster files: rendered from a few answers, and checked."""
