"""An experiment on its way to a process of Ray's."""

from typing import Any, NamedTuple

import ray

from raymtl.config import Experiment, parse
from raymtl.encoders.pretrained import weights
from raymtl.features.network import frozen_encoder
from raymtl.schema.component_modules import Shipment, shipment
from raymtl.schema.distributions import Choice


class Carried(NamedTuple):
    """An experiment as plain values, with what of the user's own it may need."""

    components: Shipment
    tree: dict[str, Any]
    hashes: dict[str, str]
    """`encoder.weights` -> the SHA-256 of the file, of all that it or its search names."""
    weights: "ray.ObjectRef[dict[str, weights.Weights]] | None"
    """What is in these files, which no other machine needs then."""

    def unpack(self) -> Experiment:
        """The experiment, in the process that it came to. Raises UserError."""
        self.components.unpack()
        reference = self.weights
        if reference is not None:
            weights.receive(self.hashes, lambda: ray.get(reference))
        return parse(self.tree)


def carry(experiment: Experiment) -> Carried:
    """The experiment for another process."""
    sources = []
    if frozen_encoder(experiment) is None:  # else trainings read features
        sources.append(experiment.encoder.weights_source)
    searched = experiment.search.get("encoder.weights")
    if isinstance(searched, Choice):
        sources += [str(choice) for choice in searched.choice]
    read = weights.held(sources)
    hashes = {source: each.sha256 for source, each in read.items()}
    reference = None
    if read:
        reference = ray.put(read)
    return Carried(shipment(), experiment.model_dump(mode="json"), hashes, reference)
