"""Encoded rows in files: how a shard is written, read as a whole, and read row by row."""
