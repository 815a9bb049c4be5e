"""Decodes pictures in a process of their own first, since some pictures kill the process.

A library that decodes pictures can crash on a damaged one, which no `except` catches. This module
is also the program of that process: it answers every picture that it survives.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

from raymtl.data.tables.pictures import measured
from raymtl.data.tables.schema import Shades

COMMAND = (sys.executable, "-m", "raymtl.data.tables.probe")
ANSWER = b"."
LENGTH_BYTES = 8
ANY = Shades(black=0, white=1)


class DecoderProbe:
    """Tells whether decoding a picture kills the process that does it."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self.command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __call__(self, content: bytes) -> None:
        """Raises OSError for a picture that the process does not survive."""
        with self._lock:
            if self._process is None:
                self._process = self._started()
            if not _survives(self._process, content):
                self.close()
                raise OSError("it kills the decoder")

    def _started(self) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command, stdin=pipe, stdout=pipe, env=environment)

    def close(self) -> None:
        """Ends the process."""
        if self._process is None:
            return
        with suppress(BrokenPipeError), self._process:  # waits for it, and closes its pipes
            pass
        self._process = None


def _survives(process: "subprocess.Popen[bytes]", content: bytes) -> bool:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(len(content).to_bytes(LENGTH_BYTES, "big") + content)
        process.stdin.flush()
    except BrokenPipeError:
        return False
    return process.stdout.read(1) == ANSWER


def main() -> None:
    """Decodes the pictures of the standard input, each after its length."""
    while header := sys.stdin.buffer.read(LENGTH_BYTES):
        content = sys.stdin.buffer.read(int.from_bytes(header, "big"))
        with suppress(Exception):  # a damaged picture is reported where it is read
            measured(content, (8, 8), 3, "stretch", ANY)
        sys.stdout.buffer.write(ANSWER)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
