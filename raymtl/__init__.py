"""raymtl: learn many tasks together, learn how to learn the next one, and search how."""

__version__ = "0.1.0"
