"""The run folder on disk (docs/run-folder.md)."""

import logging
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymtl import __version__
from raymtl.storage import atomic, fence
from raymtl.storage.atomic import Lock
from raymtl.storage.fence import Attempt
from raymtl.storage.redaction import redacted_word
from raymtl.types import UserError

if TYPE_CHECKING:
    from raymtl.config import Experiment

logger = logging.getLogger("raymtl")

LOCK = ".lock"
"""In a run folder: the file that whoever is at work on it has locked."""


PACKAGES = ("ray", "torch", "torchvision", "optuna", "pyarrow", "pydantic", "numpy")


def create(experiment: "Experiment") -> Path:
    """A new, empty run folder OUTPUT/NAME, or OUTPUT/NAME-2 ... where that is taken; absolute.

    Raises UserError where it cannot be made.
    """
    parent = Path(experiment.output).absolute()
    number = 1
    while True:
        run = parent / (experiment.name if number == 1 else f"{experiment.name}-{number}")
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            if not parent.is_dir():
                raise UserError(
                    f"output: expected a folder, got the file {parent}. Choose another output."
                ) from None
            number += 1
        except OSError as error:
            raise UserError(
                f"output: {run} cannot be made ({error.strerror}). Choose a folder that you may "
                "write to."
            ) from None


def latest(experiment: "Experiment", command: str) -> Path:
    """The run folder of this command and configuration to go on with, for `--resume`.

    That is the newest that has not come to its end and that nobody is at work on; or else the
    newest. Raises UserError where there is none.
    """
    from raymtl import config
    from raymtl.storage.formats import read_json

    parent = Path(experiment.output).absolute()
    candidates: list[Path] = []
    unreadable: list[str] = []
    for saved in _saved_configurations(parent, experiment.name):
        about = saved.with_name("environment.json")
        closed = _why_closed(saved) or _why_closed(about)
        if closed:
            unreadable.append(closed)
            continue
        try:
            same = _same(config.load(saved), experiment) and read_json(about)["run"] == command
        except (UserError, KeyError):
            continue  # a folder of another version, or of somebody else
        if same:
            candidates.append(saved)
    if not candidates:
        raise _no_run_to_resume(command, parent, unreadable)
    candidates.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    newest = [path.parent for path in candidates]
    unfinished = [run for run in newest if not (run / "summary.json").exists()]
    for run in unfinished:
        with suppress(OSError), atomic.held(run / LOCK) as lock:  # of somebody else, perhaps
            if lock is not Lock.TAKEN:
                return run
    return (unfinished or newest)[0]


def _no_run_to_resume(command: str, parent: Path, unreadable: Sequence[str]) -> UserError:
    """The error where no run can be resumed; `unreadable` says which files could not be read."""
    if unreadable:
        return UserError(
            f"--resume: {unreadable[0]}, so nobody can tell whether it is of the run to go on "
            "with. Make it readable or move its run folder elsewhere."
        )
    return UserError(
        f"--resume: expected a run of `raymtl {command}` with this very configuration in "
        f"{parent}, got none. Leave --resume away to start one, or undo what was changed since."
    )


def _saved_configurations(parent: Path, name: str) -> list[Path]:
    """Where the configurations of runs of this name stand; whether they are there is not asked."""
    try:
        return sorted(
            parent / folder / "config.yaml"
            for folder in os.listdir(parent)
            if folder.startswith(name)
        )
    except (FileNotFoundError, NotADirectoryError):
        return []


def _why_closed(path: Path) -> str | None:
    """Why a file cannot be read, as the beginning of a sentence; None where it can, or is not
    there.
    """
    try:
        path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return None


def _same(one: "Experiment", other: "Experiment") -> bool:
    """Whether the two say the same but for `output` and `track`, so that a run folder can be copied
    and gone on with.
    """
    return one.model_copy(update={"output": other.output, "track": other.track}) == other


@contextmanager
def held(run: Path) -> Iterator[Attempt]:
    """While the caller is at work on a run, no other process can be; the attempt by which the
    caller writes it.

    Raises UserError where another process is at work on it. Storage without locks cannot tell,
    which is said: there the later of two processes goes on, and the earlier ends as Superseded when
    it next writes.
    """
    path = run / LOCK
    with ExitStack() as stack:
        try:
            lock = atomic.patiently(path, lambda: stack.enter_context(atomic.held(path)))
            if lock is Lock.TAKEN:
                raise UserError(
                    f"{run}: expected a run that nobody is at work on, got one that another "
                    "process goes on with. Wait for it, or end it; of a machine that is lost, "
                    "storage knows after a minute or two."
                )
            attempt = fence.claim(run)
        except OSError as error:
            raise UserError(
                f"{run}: expected a folder that you may write to ({error.strerror})."
            ) from None
        if lock is Lock.UNKNOWN:
            logger.warning(
                "%s: the storage has no locks. If another process is at work on this run, it ends "
                "when it next writes, and this one goes on.",
                run,
            )
        yield attempt


def existing(path: Path) -> Path:
    """The same path, if it is a run folder; else raises UserError."""
    if not path.is_dir():
        raise UserError(
            f"{path}: expected a run folder, got no such folder. Runs are written under `output`."
        )
    if not (path / "config.yaml").is_file():
        raise UserError(
            f"{path}: expected a run folder, got one without config.yaml. Give one that raymtl "
            "made."
        )
    return path.absolute()


def publish_folder(parent: Path, name: str, write: Callable[[Path], Any]) -> Path:
    """Calls `write` with a folder aside, then renames that to `parent/name`, or name-2 ... where
    that is taken.

    Raises UserError where it cannot be made.
    """
    aside = parent / f".{name}.{os.getpid()}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write(aside)
        number = 1
        while True:
            folder = parent / (name if number == 1 else f"{name}-{number}")
            if not folder.exists():
                return aside.rename(folder)
            number += 1
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"{parent / name}: cannot be made ({error.strerror}). Choose another name."
        ) from None
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def environment(experiment: "Experiment", command: str) -> dict[str, Any]:
    """What is needed to run the same again: versions, commit, seed, command line."""
    import torch

    from raymtl.storage.formats import now

    versions = {"raymtl": __version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    here = Path(__file__).resolve().parent
    git = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    from raymtl.schema import component_modules

    return {
        "python": platform.python_version(),
        "packages": versions,
        "components": component_modules.described(),
        "git_commit": git.stdout.strip() or None,
        "seed": experiment.seed,
        "run": command,
        "command": [_program(), *map(redacted_word, sys.argv[1:])],
        "started": now(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _program() -> str:
    """`raymtl`, or the script or notebook server that called it."""
    name = Path(sys.argv[0]).name
    if name == "__main__.py":
        return "raymtl"
    return name
