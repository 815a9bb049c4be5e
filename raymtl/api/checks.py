"""Checks of what a call asks for, before torch is imported: the command line makes them first."""

from collections.abc import Mapping
from os import PathLike
from typing import Any, NamedTuple

from raymtl.types import UserError

Place = str | PathLike[str]
"""A file or a folder."""


def check_split(split: str) -> None:
    """Raises UserError for a split that is not scored."""
    if split not in ("val", "test"):
        raise UserError(f"--split: expected val or test, got '{split}'.")


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
