"""Files that others have pickled, read without running what stands in them."""

import pickle
from pathlib import Path
from typing import Any

from raymtl.types import UserError

ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
}
"""What numpy's arrays are made with. Numbers, texts, lists and mappings need nothing to be called.
"""

BROKEN = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)
"""What pickle raises for bytes that are none; its documentation promises no single class."""


class _ArraysAlone(pickle.Unpickler):
    """An unpickler that finds no function or class but those of numpy's arrays."""

    def find_class(self, module: str, name: str, /) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # as it was called before numpy 2
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def unpickled(path: Path, remedy: str) -> Any:
    """What the file holds: arrays, lists, mappings, numbers and texts. The texts of Python 2 are
    read as Latin-1.

    Raises UserError, which ends with `remedy`, for anything else and for what cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _ArraysAlone(file, encoding="latin1").load()
    except OSError as error:
        raise UserError(f"data.folder: {path} cannot be read: {error.strerror}. {remedy}") from None
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"data.folder: expected {path} to hold arrays, lists, numbers and texts alone, got "
            f"something else ({reason}). {remedy}"
        ) from None
