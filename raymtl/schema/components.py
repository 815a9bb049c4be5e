"""Components of the user's own: specs that are defined outside raymtl and chosen by their `name`.

`register` brings one in. A configuration names it and cannot bring it in: no name in a YAML file
is imported.
"""

import hashlib
import importlib
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FunctionType
from typing import Annotated, Any, NamedTuple, TypeVar, get_args

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import core_schema

from raymtl.types import Spec, UserError

GROUP = "raymtl"
"""The group of entry points that name modules of components."""
SECTIONS = ("data", "encoder", "sharing", "weighting", "learner", "mode")
"""Those of which components can be registered."""
OWN = "If it is your own, import its module first (raymtl --import MODULE ...)."
"""Behind the sentence on an unknown name."""
Component = TypeVar("Component", bound=type[Spec])
Argument = TypeVar("Argument")
Result = TypeVar("Result")

_registered: dict[str, dict[str, type[Spec]]] = {}
"""Section -> name -> component."""


def register(component: Component) -> Component:
    """Lets configurations choose a component by its `name`; a decorator of its class.

    Args:
        component: a subclass of `EncoderSpecBase`, `SharingSpecBase`, `LossWeightingSpec`,
            `GradientWeightingSpec`, `MetaLearner`, `Mode` or `Source`, with a field
            `name: Literal["..."] = "..."`.

    Raises:
        UserError: if it is none of these, has no name, or the name is taken. A class that is
            defined again, such as in a cell of a notebook, takes the place of the earlier one.

    Example:
        >>> @raymtl.register
        ... class Mine(raymtl.LossWeightingSpec):
        ...     name: Literal["mine"] = "mine"
    """
    section = getattr(component, "section", None)
    field = component.model_fields.get("name")
    where = f"{component.__module__}.{component.__qualname__}"
    if section is None:
        raise UserError(
            f"{where}: expected a subclass of one of raymtl's bases (docs/components.md), got "
            "another class. Inherit from one of them."
        )
    if field is None or not isinstance(field.default, str):
        raise UserError(
            f'{where}: expected a field such as `name: Literal["mine"] = "mine"`, got none. Add it.'
        )
    taken = _built_in.get(section, {}).get(field.default) or _own(section).get(field.default)
    if taken is not None:
        _check_free(component, taken, section)
    _registered.setdefault(section, {})[field.default] = component
    forget_names()
    return component


def _check_free(component: type[Spec], taken: type[Spec], section: str) -> None:
    """Raises UserError unless the two are one class, of which one was defined again."""
    if (taken.__module__, taken.__qualname__) == (component.__module__, component.__qualname__):
        return
    raise UserError(
        f"{component.__module__}.{component.__qualname__}: name: expected a name of its own, got "
        f"'{taken.model_fields['name'].default}', which {taken.__module__}.{taken.__qualname__} "
        f"has in {section}. Choose another."
    )


def _own(section: str) -> dict[str, type[Spec]]:
    return _registered.get(section, {})


def registered(section: str) -> Mapping[str, type[Spec]]:
    """The components of the user's own in a section, by name."""
    return _own(section)


def all_registered() -> Iterator[tuple[str, type[Spec]]]:
    """`SECTION.NAME` and class of each."""
    for section, components in _registered.items():
        for name, component in components.items():
            yield f"{section}.{name}", component


_built_in: dict[str, Mapping[str, type[Spec]]] = {}
"""The same of the members of the unions, as far as they have been imported."""

_caches: list[Any] = []


def depends_on_components(function: Callable[[Argument], Result]) -> Callable[[Argument], Result]:
    """A cached function whose cache is emptied when a component is registered."""
    cached = cache(function)
    _caches.append(cached)
    return cached


def forget_names() -> None:
    """Empties what was cached by the names that there were."""
    for cached in _caches:
        cached.cache_clear()


class Chosen:
    """In an annotation of a union: one of its members or of the section's registered components.

    The `name` decides which it is.
    """

    def __init__(self, section: str) -> None:
        self.section = section

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        members = get_args(source)
        named = {member.model_fields["name"].default: member for member in members}
        _built_in.setdefault(self.section, named)
        for name, component in _own(self.section).items():
            if name in named:
                _check_free(component, named[name], self.section)
        union = handler(Annotated[source, Field(discriminator="name")])
        return core_schema.no_info_wrap_validator_function(
            self._choose, union, serialization=core_schema.simple_ser_schema("any")
        )

    def _choose(self, value: Any, handler: core_schema.ValidatorFunctionWrapHandler) -> Any:
        own = _own(self.section)
        if isinstance(value, tuple(own.values())):
            return value
        if isinstance(value, Mapping):
            component = own.get(value.get("name", ""))
            if component is not None:
                return component.model_validate(value)
        return handler(value)


def import_module(name: str) -> None:
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
    classes: tuple[type[Spec], ...]
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


def _is_importable(component: type[Spec]) -> bool:
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


def _source(component: type[Spec]) -> str | None:
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
        if asked and chosen not in _own(section):
            raise UserError(
                f"{where}: {section}.name: expected '{chosen}' of the module {about['module']}, by "
                "which this run was made, got no such component. Import the module first (raymtl "
                f"--import {about['module']} ...)."
            )
