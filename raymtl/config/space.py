"""What a search may suggest."""

import itertools
from collections.abc import Mapping
from typing import Any

from raymtl.config.distributions import representatives
from raymtl.config.experiment import SEARCHABLE_TRAIN, Experiment
from raymtl.config.names import dotted_names, is_known, nearest
from raymtl.types import UserError

SEARCHABLE = ("encoder.", "sharing.", "weighting.", "learner.", "mode.")
COMBINATIONS = 2000
"""The most combinations that are checked; of the others an impossible one is a failed trial."""


def check_space(experiment: Experiment) -> None:
    """Raises UserError if `search` names a value that the configuration does not have, or if it
    could suggest a combination that cannot run.
    """
    space, defaults = experiment.search, experiment.flat()
    names = dotted_names(Experiment)
    for name, distribution in space.items():
        if not is_known(name, Experiment):
            raise UserError(f"search.{name}: unknown key.{nearest(name, names)}")
        if not name.startswith(SEARCHABLE) and name not in SEARCHABLE_TRAIN:
            raise UserError(
                f"search.{name}: expected a value that trials may differ in "
                f"({', '.join(SEARCHABLE)}, {', '.join(SEARCHABLE_TRAIN)}), got one that they are "
                "compared by. Set it outside `search`."
            )
        for key in distribution.when:
            if not is_known(key, Experiment):
                raise UserError(f"search.{name}.when.{key}: unknown key.{nearest(key, names)}")
    searched: set[str] = set()
    combinations = list(itertools.islice(representatives(space, defaults), COMBINATIONS))
    for values in combinations:
        searched |= {name for name in space if _is_suggested(name, values)}
        try:
            experiment.override(values)
        except UserError as error:
            chosen = ", ".join(f"{key}={value}" for key, value in values.items())
            raise UserError(
                f"search: the search could suggest {chosen}, which cannot run ({error}) "
                "Exclude it with a `when:` on one of the keys."
            ) from None
    if len(combinations) == COMBINATIONS:
        return
    for name in set(space) - searched:
        conditions = dict(space[name].when)
        raise UserError(
            f"search.{name}.when: expected a condition that can hold, got {conditions}. Correct "
            "its values."
        )


def _is_suggested(name: str, values: Mapping[str, Any]) -> bool:
    """Whether the values have one of this name, or below it, as the weights of a simplex are."""
    return any(key == name or key.startswith(f"{name}.") for key in values)
