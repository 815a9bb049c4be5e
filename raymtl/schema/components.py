"""Components of the user's own: classes that are defined outside raymtl and chosen by their `name`.

`register` brings one in. A configuration names it and cannot bring it in: no name in a YAML file
is imported.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, TypeVar, get_args

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import core_schema

from raymtl.types import Spec, TaskKind, UserError

SECTIONS = ("data", "encoder", "sharing", "weighting", "learner", "mode")
"""Those of which components can be registered, besides kinds of task."""
KIND = "kind"
"""What kinds of task are registered under, as `data.tasks.NAME.kind` names them."""
OWN = "If it is your own, import its module first (raymtl --import MODULE ...)."
"""Behind the sentence on an unknown name."""
AnyComponent = Spec | TaskKind
Component = TypeVar("Component", bound=AnyComponent)
Argument = TypeVar("Argument")
Result = TypeVar("Result")

_registered: dict[str, dict[str, type[Spec]]] = {}
"""Section -> name -> component."""
_kinds: dict[str, type[TaskKind]] = {}
"""Name -> kind of task."""


def register(component: type[Component]) -> type[Component]:
    """Lets configurations choose a component by its `name`; a decorator of its class.

    Args:
        component: a subclass of `EncoderSpecBase`, `SharingSpecBase`, `LossWeightingSpec`,
            `GradientWeightingSpec`, `MetaLearner`, `Mode` or `Source`, with a field
            `name: Literal["..."] = "..."`; or a subclass of `TaskKind` with a `name = "..."`.

    Raises:
        UserError: if it is none of these, has no name, or the name is taken. A class that is
            defined again, such as in a cell of a notebook, takes the place of the earlier one.

    Example:
        >>> @raymtl.register
        ... class Mine(raymtl.LossWeightingSpec):
        ...     name: Literal["mine"] = "mine"
    """
    if issubclass(component, TaskKind):
        _register_kind(component)
        return component
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
        _check_free(component, taken, field.default, section)
    _registered.setdefault(section, {})[field.default] = component
    forget_names()
    return component


def _register_kind(kind: type[TaskKind]) -> None:
    name = getattr(kind, "name", None)
    if not isinstance(name, str):
        raise UserError(
            f'{kind.__module__}.{kind.__qualname__}: expected a line such as `name = "mine"`, got '
            "none. Add it."
        )
    taken = _built_in_kinds.get(name) or _kinds.get(name)
    if taken is not None:
        _check_free(kind, taken, name, "data.tasks.TASK.kind")
    _kinds[name] = kind
    forget_names()


def _check_free(
    component: type[AnyComponent], taken: type[AnyComponent], name: str, section: str
) -> None:
    """Raises UserError unless the two are one class, of which one was defined again."""
    if (taken.__module__, taken.__qualname__) == (component.__module__, component.__qualname__):
        return
    raise UserError(
        f"{component.__module__}.{component.__qualname__}: name: expected a name of its own, got "
        f"'{name}', which {taken.__module__}.{taken.__qualname__} has in {section}. Choose another."
    )


def _own(section: str) -> dict[str, type[Spec]]:
    return _registered.get(section, {})


def registered(section: str) -> Mapping[str, type[Spec]]:
    """The components of the user's own in a section, by name."""
    return _own(section)


def registered_kinds() -> Mapping[str, type[TaskKind]]:
    """The kinds of task of the user's own, by name."""
    return _kinds


def all_registered() -> Iterator[tuple[str, type[AnyComponent]]]:
    """`SECTION.NAME` and class of each."""
    for section, components in _registered.items():
        for name, component in components.items():
            yield f"{section}.{name}", component
    for name, kind in _kinds.items():
        yield f"{KIND}.{name}", kind


_built_in: dict[str, Mapping[str, type[Spec]]] = {}
"""The same of the members of the unions, as far as they have been imported."""
_built_in_kinds: dict[str, type[TaskKind]] = {}


def name_built_in_kinds(kinds: Mapping[str, type[TaskKind]]) -> None:
    """Reserves the names of raymtl's kinds of task. Raises UserError where one is taken."""
    _built_in_kinds.update(kinds)
    for name, kind in _kinds.items():
        if name in kinds:
            _check_free(kind, kinds[name], name, "data.tasks.TASK.kind")


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
                _check_free(component, named[name], name, self.section)
        union = handler(Annotated[source, Field(discriminator="name")])
        return core_schema.no_info_wrap_validator_function(
            self._choose, union, serialization=core_schema.simple_ser_schema("any")
        )

    def _choose(self, value: Any, handler: core_schema.ValidatorFunctionWrapHandler) -> Any:
        own = _own(self.section)
        if isinstance(value, tuple(own.values())):
            return value
        if isinstance(value, Mapping):
            name = value.get("name")
            if isinstance(name, str) and name in own:
                return own[name].model_validate(value)
        return handler(value)
