"""What a search may suggest."""

import itertools

from raymtl.config.domains import representatives
from raymtl.config.experiment import SEARCHABLE_TRAIN, Experiment
from raymtl.config.names import dotted_names, is_known, nearest
from raymtl.types import UserError

SEARCHABLE = ("encoder.", "sharing.", "weighting.", "learner.", "mode.")
COMBINATIONS = (
    2000  # checked at most; a search beyond them finds an impossible one as a failed trial
)


def check_space(experiment: Experiment) -> None:
    """Raises UserError if a domain names no value of the configuration, or some combination could
    not run.
    """
    space, defaults = experiment.search, experiment.flat()
    names = dotted_names(Experiment)
    for name, domain in space.items():
        if not is_known(name, Experiment):
            raise UserError(f"search.{name}: unknown key.{nearest(name, names)}")
        if not name.startswith(SEARCHABLE) and name not in SEARCHABLE_TRAIN:
            raise UserError(
                f"search.{name}: expected a value that trials may differ in "
                f"({', '.join(SEARCHABLE)}, {', '.join(SEARCHABLE_TRAIN)}), got one that they are "
                "compared by. Set it outside `search`."
            )
        for key in domain.when:
            if not is_known(key, Experiment):
                raise UserError(f"search.{name}.when.{key}: unknown key.{nearest(key, names)}")
    searched: set[str] = set()
    combinations = list(itertools.islice(representatives(space, defaults), COMBINATIONS))
    for values in combinations:
        searched |= {
            name
            for name in space
            if any(key == name or key.startswith(f"{name}.") for key in values)
        }
        try:
            experiment.override(values)
        except UserError as error:
            chosen = ", ".join(f"{key}={value}" for key, value in values.items())
            raise UserError(
                f"search: the search could suggest {chosen}, which cannot run ({error}) "
                "Exclude it with a `when:` on one of the keys."
            ) from None
    for name in set(space) - searched if len(combinations) < COMBINATIONS else ():
        conditions = dict(space[name].when)
        raise UserError(
            f"search.{name}.when: expected a condition that can hold, got {conditions}. Correct "
            "its values."
        )
