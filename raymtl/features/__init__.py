"""Features of frozen networks: computed once, kept in files, read in place of pictures."""
