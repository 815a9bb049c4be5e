"""Places of the user's files, as they are written in a configuration."""

import os
import re

from raymtl.storage.redaction import holds_secret, redacted
from raymtl.types import UserError


def absolute(path: str, key: str) -> str:
    """The path from the root of the disk; a URL, or the variable that holds it, as it is. Raises
    UserError.

    A configuration is kept and shown: a URL's password or signature has to come from the
    environment at every reading.
    """
    expanded = expand(path, key)
    if "://" not in expanded:
        return os.path.abspath(expanded)
    if holds_secret(re.sub(r"\$\{?\w+\}?", "", path)):
        raise UserError(
            f"{key}: expected the password or signature in an environment variable, as in "
            f"$MY_DATA_URL, got it in {redacted(path)} itself, which config.yaml would keep. Set "
            "the variable to the URL, and give its name."
        )
    return path


def expand(path: str, key: str) -> str:
    """The path with its variables replaced by their values. Raises UserError for one without."""
    if "://" not in path and _is_there(path):
        return path
    expanded = os.path.expanduser(os.path.expandvars(path))
    if "$" in expanded and not ("://" not in expanded and _is_there(expanded)):
        name = expanded.partition("$")[2].partition("/")[0].strip("{}")
        raise UserError(
            f"{key}: expected the environment variable {name} to be set, got none: {path}. Set it."
        )
    return expanded


def _is_there(path: str) -> bool:
    """Whether there is such a file or folder, or such a folder below which a pattern begins; `$` is
    in some names.
    """
    fixed, star, _ = path.partition("*")
    if star and "$" in fixed:
        return os.path.lexists(os.path.dirname(fixed))
    return os.path.lexists(path)


def nothing_at(shown: str, key: str) -> UserError:
    """The error about a path at which there is nothing."""
    return UserError(
        f"{key}: expected a file, a folder or a URL, got {shown}, where there is none."
    )
