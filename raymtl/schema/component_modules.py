"""The modules of the user's own components: imported by their names, and in other processes."""

import hashlib
import importlib
import linecache
import os
import sys
import traceback
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

from raymtl.schema.components import AnyComponent, all_registered, register, registered
from raymtl.types import UserError

GROUP = "raymtl"
"""The group of entry points that name modules of components."""


def import_components(name: str) -> None:
    """Imports a module of the user's own components by the name that the user gave.

    Raises UserError where it cannot be imported, with the place in it.
    """
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        importlib.import_module(name)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(
            f"--import {name}: {error}. Give the name of a module of this folder, or of a package "
            "that is installed."
        ) from None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"--import {name}: {type(error).__name__}: {error} ({last.filename}:{last.lineno}). "
            "Mend the module."
        ) from None


@cache
def plugins() -> tuple[EntryPoint, ...]:
    """The installed entry points that name modules of components."""
    return tuple(entry_points(group=GROUP))


def import_plugins() -> None:
    """Imports the modules of all entry points. Raises UserError that names the package."""
    for plugin in plugins():
        try:
            plugin.load()
        except Exception as error:
            package = "a package"
            if plugin.dist is not None:
                package = plugin.dist.name
            raise UserError(
                f"{package}: its entry point '{plugin.name}' ({plugin.value}) cannot be imported "
                f"({type(error).__name__}: {error}). Mend or uninstall the package."
            ) from None


class Shipment(NamedTuple):
    """The registered components, as they travel to other processes."""

    modules: tuple[str, ...]
    """Those that are imported there."""
    classes: tuple[type[AnyComponent], ...]
    """Those of a script or a notebook, which no process can import."""

    def unpack(self) -> None:
        """Registers the components in this process. Raises UserError where that cannot be."""
        for name in self.modules:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise UserError(
                    f"{name}: expected a module that Ray's workers can import, got {error}. Put it "
                    "into one file or package, or install it on all machines."
                ) from None
        for component in self.classes:
            register(component)


def shipment() -> Shipment:
    """What other processes need of the registered components."""
    modules: dict[str, None] = {}
    classes = []
    for _, component in all_registered():
        if _is_importable(component):
            modules[component.__module__] = None
        else:
            classes.append(component)
    return Shipment(tuple(modules), tuple(classes))


def _is_importable(component: type[AnyComponent]) -> bool:
    module = sys.modules.get(component.__module__)
    return component.__module__ != "__main__" and getattr(module, "__file__", None) is not None


def local_modules() -> list[str]:
    """The files or folders of the modules that no installed package has, for Ray's `py_modules`."""
    paths: dict[str, None] = {}
    installed = {plugin.module.partition(".")[0] for plugin in plugins()}
    for name in shipment().modules:
        top = name.partition(".")[0]
        file = getattr(sys.modules[top], "__file__", None)
        if top in installed or file is None or "site-packages" in Path(file).parts:
            continue
        path = Path(file)
        if path.name == "__init__.py":
            path = path.parent
        paths[str(path)] = None
    return list(paths)


def described() -> dict[str, Any]:
    """`SECTION.NAME` -> the module and the SHA-256 of its source, for environment.json."""
    found: dict[str, Any] = {}
    for name, component in all_registered():
        source = _source(component)
        digest = None
        if source is not None:
            digest = hashlib.sha256(source.encode()).hexdigest()
        found[name] = {"module": component.__module__, "sha256": digest}
    return found


def _source(component: type[AnyComponent]) -> str | None:
    """The text of the file or of the cells that define the component; None where there is none."""
    file = getattr(sys.modules.get(component.__module__), "__file__", None)
    if file is not None and Path(file).is_file():
        return Path(file).read_text(encoding="utf8")
    cells = {
        function.__code__.co_filename
        for function in vars(component).values()
        if isinstance(function, FunctionType)
    }
    lines = [line for cell in sorted(cells) for line in linecache.getlines(cell)]
    if lines:
        return "".join(lines)
    return None


def check_known(tree: Mapping[str, Any], recorded: Mapping[str, Any], where: object) -> None:
    """Raises UserError where a saved configuration chooses a component of the user's own, as its
    run has `recorded` it, that is not registered here.
    """
    for name, about in recorded.items():
        section, _, chosen = name.partition(".")
        values = tree.get(section)
        asked = isinstance(values, Mapping) and values.get("name") == chosen
        if asked and chosen not in registered(section):
            origin, advice = f"the module {about['module']}", "Import the module first (raymtl "
            advice += f"--import {about['module']} ...)."
            if about["module"] == "__main__":
                origin, advice = "a script or notebook", "Define it in this process first."
            raise UserError(
                f"{where}: {section}.name: expected '{chosen}' of {origin}, by which this run was "
                f"made, got no such component. {advice}"
            )
