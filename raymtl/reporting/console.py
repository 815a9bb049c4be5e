"""The terminal: everything is printed as it is, whatever the names of a user's columns, classes and
files.
"""

import codecs
import io
import logging
import sys
from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
    """Rich's console, in which `[b]` is no style and `:x:` no picture."""
    return Console(**{"markup": False, "emoji": False, **options})


def print_any_letter() -> None:
    """Makes the standard streams print every letter: in UTF-8 where a locale asks for ASCII."""
    errors = "backslashreplace"
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue  # nothing that encodes
        encoding = codecs.lookup(stream.encoding).name
        if encoding == "ascii":
            stream.reconfigure(encoding="utf8", errors=errors)
        elif encoding != "utf-8":
            stream.reconfigure(errors=errors)


class _StderrHandler(logging.Handler):
    """Prints the message alone, to whatever stderr is then."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def log_to_stderr() -> None:
    """Prints what the package logs, such as storage that is away, as plain lines on stderr."""
    logger = logging.getLogger("raymtl")
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
