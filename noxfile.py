"""The checks of this project, one session each: `nox` runs lint, types and docs.

    pip install -c constraints.txt -e '.[dev]'
    nox --list
    nox -s test -- tests/weighting      # words after -- go to pytest

Sessions run in the active environment. A separate one for each would install torch six times.
"""

import sys

import nox

nox.options.sessions = ["lint", "types", "docs"]
nox.options.default_venv_backend = "none"


def python(session: nox.Session, *arguments: str) -> None:
    """Runs a module of the environment that runs nox."""
    session.run(sys.executable, "-m", *arguments)


@nox.session
def test(session: nox.Session) -> None:
    """The tests to run before every commit."""
    python(session, "pytest", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that prove a promise of the documentation and take minutes."""
    python(session, "pytest", "-m", "slow and not cluster and not long", *session.posargs)


@nox.session
def cluster(session: nox.Session) -> None:
    """Faults on hosts of their own. Needs root, iproute2, openssh-server and rsync."""
    words = session.posargs or ["tests/cluster"]
    python(session, "pytest", "-m", "cluster and not slow", "-n", "0", "-rs", *words)


@nox.session
def coverage(session: nox.Session) -> None:
    """The default tests, with a table of the lines that they never reach."""
    report = ["--cov=raymtl", "--cov-report=term:skip-covered", "--cov-report=html:build/coverage"]
    python(session, "pytest", *report, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format."""
    python(session, "ruff", "check", ".")
    python(session, "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types of the package and the tests."""
    python(session, "mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation against the code: links, keys, commands, methods, recipes, layers."""
    names = ("documentation", "contributing", "layering")
    paths = ["tests/config/test_catalog.py", *(f"tests/test_{name}.py" for name in names)]
    python(session, "pytest", "-n", "0", *paths, *session.posargs)
