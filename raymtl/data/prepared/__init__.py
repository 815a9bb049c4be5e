"""The user's files, encoded once into shards, and the source that trains from these."""
