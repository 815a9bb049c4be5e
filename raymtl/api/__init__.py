"""The Python interface; `raymtl` itself has all of its names. The command line is a layer on it."""
