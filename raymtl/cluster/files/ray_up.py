"""What is wrong with a file for `ray up`, whatever the provider."""

import contextlib
import copy
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raymtl.cluster.doctor.check import first_line
from raymtl.cluster.files.documents import PLACEHOLDER
from raymtl.cluster.files.providers import PROVIDERS
from raymtl.internals import ray as ray_internals
from raymtl.types import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SETUP = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
)
START = ("head_start_ray_commands", "worker_start_ray_commands")
MAKE_TOKEN = "make it with (umask 077; mkdir -p ~/.ray; openssl rand -hex 32 > ~/.ray/raymtl_token)"


def find_problems(documents: Sequence[Mapping[str, Any]], folder: Path) -> Iterator[str]:
    """A sentence for each problem. `folder` is where `ray up` would be started."""
    if len(documents) > 1:
        yield (
            f"expected one document, as `ray up` reads it, got {len(documents)}; remove the others."
        )
        return
    config = documents[0]
    try:
        prepared = _as_ray_reads(config)
    except UserError as error:
        yield str(error)
        return  # its parts need not have the types that the checks below rely on
    kind = config["provider"]["type"]
    if kind not in PROVIDERS:
        yield (
            f"provider.type: expected one of {', '.join(PROVIDERS)}, which can be checked here, "
            f"got '{kind}'."
        )
        return
    provider = PROVIDERS[kind]
    for key in provider.required_keys:
        if not config["provider"].get(key):
            yield (
                f"provider.{key}: expected a value, got none; Ray would notice half-way, or take "
                "its own default."
            )
    yield from _numbers(config)
    yield from _mounts(config, folder)
    yield from _key(config)
    yield from _token(config)
    yield from _dashboard(config)
    yield from provider.find_problems(prepared)


def _as_ray_reads(config: Mapping[str, Any]) -> dict[str, Any]:
    """The file with Ray's defaults. Raises UserError where Ray refuses it."""
    try:
        # Ray warns of mounted files, which matters to Docker alone.
        with contextlib.redirect_stdout(io.StringIO()):
            return ray_internals.prepared_cluster_file(copy.deepcopy(dict(config)))
    except UserError:
        raise
    except Exception as error:  # Ray and jsonschema raise a dozen kinds
        place = ".".join(map(str, getattr(error, "absolute_path", ())))
        if place:
            place += ": "
        raise UserError(f"{place}Ray refuses the file: {first_line(error)}.") from None


def _numbers(config: Mapping[str, Any]) -> Iterator[str]:
    types = config.get("available_node_types", {})
    limit = config.get("max_workers")
    for name, node in types.items():
        least, most = node.get("min_workers", 0), node.get("max_workers", limit)
        where = f"available_node_types.{name}"
        if most is not None and least > most:
            yield (
                f"{where}.min_workers: expected at most max_workers: {most}, got {least}; lower it."
            )
        if limit is not None and most is not None and most > limit:
            yield (
                f"{where}.max_workers: expected at most the file's max_workers: {limit}, got "
                f"{most}; lower it."
            )


def _mounts(config: Mapping[str, Any], folder: Path) -> Iterator[str]:
    for target, source in config.get("file_mounts", {}).items():
        path = folder / Path(str(source)).expanduser()
        token = "token" in path.name
        if PLACEHOLDER.search(str(source)):
            continue
        if not path.exists():
            if token:
                advice = MAKE_TOKEN
            else:
                advice = f"it is looked for from {folder}"
            yield (
                f"file_mounts.{target}: expected a file or folder, got {source}, which does not "
                f"exist; {advice}."
            )
        elif token and not path.stat().st_size:
            yield (
                f"file_mounts.{target}: expected a token, got {source}, which is empty; "
                f"{MAKE_TOKEN}."
            )
        elif token and path.stat().st_mode & 0o077:
            yield (
                f"file_mounts.{target}: expected a file that is yours alone, got an open one; "
                f"chmod 600 {source}."
            )


def _key(config: Mapping[str, Any]) -> Iterator[str]:
    if not config.get("auth", {}).get("ssh_user"):
        yield "auth.ssh_user: expected the account on the machines, got none; add it."
    given = config.get("auth", {}).get("ssh_private_key")
    if given is None or PLACEHOLDER.search(given):
        return
    path = Path(given).expanduser()
    if not path.is_file():
        yield (
            f"auth.ssh_private_key: expected a private key, got {given}, which does not exist; "
            "give its path."
        )
    elif path.stat().st_mode & 0o077:
        yield (
            "auth.ssh_private_key: expected a file that is yours alone, got one open to others; "
            f"chmod 600 {given}."
        )


def commands(config: Mapping[str, Any], sections: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(dotted key, shell command) of these sections."""
    for section in sections:
        for index, command in enumerate(config.get(section) or []):
            yield f"{section}.{index}", command


def _token(config: Mapping[str, Any]) -> Iterator[str]:
    every = dict(commands(config, (*SETUP, *START)))
    if not any("RAY_AUTH_MODE=token" in command for command in every.values()):
        yield (
            "setup_commands: expected RAY_AUTH_MODE=token in the environment of every `ray start`, "
            "got none; without it whoever reaches Ray's ports can run programs on the machines."
        )
        return
    for key, command in every.items():
        yield from _token_settings(key, command, config.get("file_mounts", {}))
    for section in START:
        yield from _token_at_start(section, config)


def _token_settings(key: str, command: str, mounts: Mapping[str, Any]) -> Iterator[str]:
    """Problems of what one shell command says about the token."""
    other_mode = re.search(r"RAY_AUTH_MODE=(?!token\b)\S*", command)
    if other_mode:
        yield (
            f"{key}: expected RAY_AUTH_MODE=token, got {other_mode[0]}; others could run programs "
            "there."
        )
    if re.search(r"RAY_AUTH_TOKEN=(?!\$)\S", command):
        yield (
            f"{key}: expected RAY_AUTH_TOKEN_PATH, got the token itself; mount a file with it "
            "instead."
        )
    for path in re.findall(r"RAY_AUTH_TOKEN_PATH=(?:\$HOME|~)/([^\s'\"]+)", command):
        if f"~/{path}" not in mounts:
            yield (
                f"{key}: expected file_mounts to bring the token to ~/{path}, got no such mount; "
                "add it."
            )


def _token_at_start(section: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Whether every `ray start` of the section reads the token's settings first."""
    starts = [
        (key, command) for key, command in commands(config, [section]) if "ray start" in command
    ]
    if not starts:
        yield (
            f"{section}: expected a command that reads the token's settings, got none; Ray's "
            "default starts open."
        )
    for key, command in starts:
        sources_settings = re.match(r"\s*(\.|source) \S+ *\|\| *exit", command)
        if "RAY_AUTH_MODE=token" not in command and not sources_settings:
            yield (
                f"{key}: expected `. FILE || exit 1;` before `ray start`, got none; where the "
                "settings were missing, Ray would start open."
            )


def _dashboard(config: Mapping[str, Any]) -> Iterator[str]:
    for key, command in commands(config, START):
        for given in re.findall(r"--dashboard-host[= ](\S+)", command):
            if given.strip("'\"") not in LOOPBACK:
                yield (
                    f"{key}: expected --dashboard-host=127.0.0.1, got {given}; reach it through "
                    "`ray dashboard`."
                )
