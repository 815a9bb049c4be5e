"""Checks of what a call asks for, before torch is imported: the command line makes them first."""

from collections.abc import Mapping
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from raymtl.types import UserError

Place = str | PathLike[str]
"""A file or a folder."""


def check_split(split: str) -> None:
    """Raises UserError for a split that is not scored."""
    if split not in ("val", "test"):
        raise UserError(f"--split: expected val or test, got '{split}'.")


EXPORT_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What `--to onnx` needs: the extra `export`."""


def check_export(to: str, output: Place | None) -> None:
    """Raises UserError for a format that is not known, or that cannot be written here, and for a
    folder that exists.
    """
    if to not in ("torch", "onnx"):
        raise UserError(f"--to: expected torch, onnx, mlflow or wandb, got '{to}'.")
    missing = [name for name in EXPORT_PACKAGES if to == "onnx" and find_spec(name) is None]
    if missing:
        raise UserError(
            f"--to onnx: expected the packages {', '.join(EXPORT_PACKAGES)}, got no "
            f"{missing[0]}. Install them with `pip install 'raymtl[export]'`, or use --to torch."
        )
    if output is not None and Path(output).exists():
        raise UserError(
            f"--output: expected a folder that is yet to be made, got {output}, which exists. "
            "Choose another name."
        )


class AdaptOptions(NamedTuple):
    """What `adapt` was asked for, as far as it must go together."""

    support: Place | None
    query: Place | None
    episode: int
    steps: int | None
    task: str | None
    transfer: str | None
    values: Mapping[str, Any] | None

    def check(self) -> None:
        """Raises UserError for options that do not go together."""
        if self.support is not None and self.episode:
            raise UserError(
                "--episode: expected either --support or --episode, got both. Leave one away."
            )
        if self.query is not None and self.support is None:
            raise UserError(
                "--query: expected --support beside it, the examples to adapt to, got none. Add it."
            )
        if self.task is not None and self.support is None:
            raise UserError(
                "--task: expected --support beside it, the examples of the task, got none. Add it."
            )
        if self.transfer is not None and self.steps is not None:
            raise UserError(
                "--steps: expected none with --transfer, which has --set optimiser.steps=N. Leave "
                "it away."
            )
        if self.values and self.transfer is None:
            key, value = next(iter(self.values.items()))
            raise UserError(
                f"--set: expected --transfer, whose values it sets, got {key}={value} alone. Add "
                "--transfer."
            )
