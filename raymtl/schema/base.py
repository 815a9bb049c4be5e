"""What the Experiment and its outline have in common: dotted values, and how they are replaced."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import ValidationError

from raymtl.schema.distributions import Space
from raymtl.schema.explain import explain
from raymtl.schema.names import as_values, dotted_names, members, nearest, open_names
from raymtl.types import Spec, UserError, matching

RunName = Annotated[
    str, matching(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "ASCII letters, digits, and _ . - within")
]
ALTERNATIVES = {
    "train.batch_size": ("train.meta_batch",),
    "train.meta_batch": ("train.batch_size",),
    "train.epochs": ("train.steps",),
    "train.steps": ("train.epochs", "train.epoch_rows"),
}
"""Keys that say the same thing in two ways: an override by one takes the place of the others."""
Root = TypeVar("Root", bound=Spec)


class ExperimentBase(Spec):
    """A whole configuration. The dotted path of a field is its name in YAML, `--set`, the search
    and reports.
    """

    if TYPE_CHECKING:
        data: Any
        stages: tuple[Any, ...]
        search: Space
    else:

        def __init__(self, **values: Any) -> None:
            """Raises UserError that begins with the dotted key."""
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise UserError(explain(error, values, type(self))) from None

    @property
    def is_resolved(self) -> bool:
        """Whether everything is known that the files of the data decide."""
        return True

    def resolve(self) -> Self:
        """The configuration with what the files of its data hold. It reads them, unless that is
        known, and checks what depends on it. Raises UserError.

        An outline has nothing to read.
        """
        return self

    def override(self, values: Mapping[str, Any]) -> Self:
        """The configuration with these dotted values, validated.

        A changed `SECTION.name` keeps what was set of the old member, other than its defaults, and
        the new one has too. What was resolved is so again. Raises UserError.
        """
        root = type(self)
        changes_data = any(key.partition(".")[0] == "data" for key in values)
        excluded = {"data"}
        if changes_data:
            excluded = set()
        tree = self.model_dump(mode="json", exclude=excluded)
        if changes_data:
            tree.get("train", {}).pop("epoch_rows", None)  # of other data
        for key, value in sorted(values.items(), key=lambda item: not item[0].endswith(".name")):
            *path, last = key.split(".")
            node = _at(tree, path, key, root)
            for other in ALTERNATIVES.get(key, ()):
                if value is not None and other not in values:
                    node.pop(other.rpartition(".")[2], None)
            if last == "name" and len(path) == 1 and value != node.get("name"):
                tree[path[0]] = _renamed(path[0], node, value, root)
            else:
                node[last] = value
        if not changes_data:  # then the data need not be validated again
            tree["data"] = self.data
        changed = parse(root, tree)
        if self.is_resolved:
            return changed.resolve()
        return changed

    def flat(self) -> dict[str, Any]:
        """Dotted path -> value, for all that is not the search itself."""
        return dict(as_values(self.model_dump(exclude={"search", "tune"})))


Config = TypeVar("Config", bound=ExperimentBase)


def parse(root: type[Root], tree: Mapping[str, Any]) -> Root:
    """Validates a plain tree; raises UserError that begins with the dotted key."""
    try:
        return root.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, tree, root)) from None


def _renamed(
    section: str, values: Mapping[str, Any], name: Any, root: type[Spec]
) -> dict[str, Any]:
    """The values of a section for another member of its union: those that were set and that it has
    too.
    """
    known = members(section, root)
    defaults = known[values["name"]]().model_dump(mode="json")
    member = known.get(str(name))
    new_values = {}
    if member is not None:
        for key, value in values.items():
            if key in member.model_fields and value != defaults[key]:
                new_values[key] = value
    return new_values | {"name": name}


def _at(tree: dict[str, Any], path: Sequence[str], key: str, root: type[Spec]) -> dict[str, Any]:
    """The mapping at the path, begun where the user names what is in it; raises UserError if there
    can be none.
    """
    node: Any = tree
    for depth, part in enumerate(path):
        named_by_user = {f"{'.'.join(path[:end])}.*" for end in (depth, depth + 1)} & {
            *open_names(root)
        }
        # A method that was chosen just now lacks what it does not set, such as encoder.trunk.
        begins = named_by_user or key in dotted_names(root)
        if isinstance(node, dict) and part not in node and begins:
            node[part] = {}
        if not isinstance(node, dict) or part not in node:
            raise UserError(f"{key}: unknown key.{nearest(key, dotted_names(root))}")
        if node[part] is None:  # an optional part, such as tune.asha, that a value in it begins
            node[part] = {}
        node = node[part]
    if not isinstance(node, dict):
        raise UserError(f"{key}: unknown key.{nearest(key, dotted_names(root))}")
    return node
