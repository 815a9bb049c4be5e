"""An experiment on its way to a process of Ray's."""

from typing import Any, NamedTuple

from raymtl.config import Experiment, parse
from raymtl.schema.component_modules import Shipment, shipment


class Carried(NamedTuple):
    """An experiment as plain values, with the components of the user's own that it may name."""

    components: Shipment
    tree: dict[str, Any]

    def unpack(self) -> Experiment:
        """The experiment, in the process that it came to. Raises UserError."""
        self.components.unpack()
        return parse(self.tree)


def carry(experiment: Experiment) -> Carried:
    """The experiment for another process."""
    return Carried(shipment(), experiment.model_dump(mode="json"))
