"""What a search may suggest."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from raymtl.schema.base import ExperimentBase
from raymtl.schema.distributions import representatives
from raymtl.schema.names import dotted_names, is_known, nearest
from raymtl.types import UserError

SEARCHABLE_TRAIN = (
    "train.meta_batch",
    "train.batch_size",
    "train.optimizer",
    "train.lr",
    "train.schedule",
    "train.clip_norm",
    "train.weight_decay",
)
SEARCHABLE = ("encoder.", "sharing.", "weighting.", "learner.", "mode.")
COMBINATIONS = 2000
"""The most combinations that are checked; of the others an impossible one is a failed trial."""


def check_space(config: ExperimentBase) -> None:
    """Raises UserError if `search` names a value that the configuration does not have, or if it
    could suggest a combination that cannot run.
    """
    check_names(config)
    space = config.search
    searched: set[str] = set()
    number = 0
    for values in combinations(config):
        number += 1
        searched |= {name for name in space if _is_suggested(name, values)}
        check_combination(config, values)
    if number == COMBINATIONS:
        return
    for name in set(space) - searched:
        conditions = dict(space[name].when)
        raise UserError(
            f"search.{name}.when: expected a condition that can hold, got {conditions}. Correct "
            "its values."
        )


def check_names(config: ExperimentBase) -> None:
    """Raises UserError if `search` names a value that the configuration does not have."""
    root = type(config)
    names = dotted_names(root)
    for name, distribution in config.search.items():
        if not is_known(name, root):
            raise UserError(f"search.{name}: unknown key.{nearest(name, names)}")
        if not name.startswith(SEARCHABLE) and name not in SEARCHABLE_TRAIN:
            raise UserError(
                f"search.{name}: expected a value that trials may differ in "
                f"({', '.join(SEARCHABLE)}, {', '.join(SEARCHABLE_TRAIN)}), got one that they are "
                "compared by. Set it outside `search`."
            )
        for key in distribution.when:
            if not is_known(key, root):
                raise UserError(f"search.{name}.when.{key}: unknown key.{nearest(key, names)}")


def combinations(config: ExperimentBase) -> Iterator[dict[str, Any]]:
    """The combinations that are checked, each as dotted values."""
    return itertools.islice(representatives(config.search, config.flat()), COMBINATIONS)


def check_combination(config: ExperimentBase, values: Mapping[str, Any]) -> None:
    """Raises UserError if a trial of these dotted values cannot run."""
    try:
        config.override(values)
    except UserError as error:
        chosen = ", ".join(f"{key}={value}" for key, value in values.items())
        raise UserError(
            f"search: the search could suggest {chosen}, which cannot run ({error}) "
            "Exclude it with a `when:` on one of the keys."
        ) from None


def _is_suggested(name: str, values: Mapping[str, Any]) -> bool:
    """Whether the values have one of this name, or below it, as the weights of a simplex are."""
    return any(key == name or key.startswith(f"{name}.") for key in values)
