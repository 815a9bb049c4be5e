"""Private names of Ray: all stand in one file, all exist, and one that is gone costs a warning."""

import ast
import logging
from pathlib import Path
from typing import Any

import pytest

from raymtl.internals import ray as ray_internals
from raymtl.internals.ray import PRIVATE_NAMES, PrivateName
from raymtl.types import UserError

ray = pytest.importorskip("ray")

ROOT = Path(ray_internals.__file__).parent.parent
GONE = PrivateName("ray._private.nowhere:nothing.at_all", "prove a point", "nothing is lost")


@pytest.mark.parametrize("name", PRIVATE_NAMES, ids=lambda name: name.path)
def test_ray_has_every_private_name(name: PrivateName) -> None:
    assert name.find() is not None, name.explain()


def test_every_private_name_is_listed() -> None:
    defined = {value for value in vars(ray_internals).values() if isinstance(value, PrivateName)}
    assert defined == set(PRIVATE_NAMES)


def private_uses(path: Path) -> set[str]:
    """Dotted names of Ray with a private part, imported or reached by attributes."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    return {
        name
        for name in names
        if name.startswith("ray.") and "._" in name.replace("__version__", "")
    }


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.name)
def test_private_names_stand_in_one_file(path: Path) -> None:
    assert path == Path(ray_internals.__file__) or not private_uses(path)


def test_a_missing_name_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_internals, "_reported", set())
    with caplog.at_level(logging.WARNING, "raymtl"):
        assert GONE.find() is None
        assert GONE.find() is None
    (message,) = caplog.messages
    assert "ray._private.nowhere:nothing.at_all" in message
    assert "Install ray" in message
    with pytest.raises(UserError, match="prove a point"):
        GONE.require()


def test_training_goes_on_without_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for constant, value in vars(ray_internals).copy().items():
        if isinstance(value, PrivateName):
            monkeypatch.setattr(ray_internals, constant, GONE)
    ray_internals.connect_to_gcs("127.0.0.1:1")
    assert list(ray_internals.draining_nodes()) == []
    assert ray_internals.lost_worker_errors() == (ray.exceptions.RayActorError,)
    nobody: Any = None
    assert ray_internals.controller_callbacks(nobody) == ()
    assert list(ray_internals.running_workers(None, 1.0)) == []
    assert ray_internals.token_probe()() is None
    with ray_internals.translated_task_errors(lambda error: error):
        pass
    assert ray_internals.tune_logger().name == "ray.tune"


def test_ray_is_started_without_its_log_monitor() -> None:
    parameter = ray._private.parameter
    ordinary = parameter.RayParams
    with ray_internals.without_log_monitor():
        assert parameter.RayParams().include_log_monitor is False
    assert parameter.RayParams is ordinary


def test_versions_of_frameworks_are_plain_texts() -> None:
    """A subclass of str would make every process that reads them import torch."""
    framework = pytest.importorskip("ray.train.v2._internal.util").TrainingFramework.TORCH
    versions = ray_internals.framework_versions(framework)
    assert versions.keys() == {"ray", "torch"}
    assert {type(version) for version in versions.values()} == {str}
