"""A few pictures are learned by heart, by every kind of task at once on one trunk."""

import pytest
import torch

from raymtl.encoders import ConvSpec
from raymtl.step.meta_gradient import meta_gradient
from raymtl.tasks import label_counts, metric_sums, metric_values
from raymtl.types import Episode
from tests.narrowing import shared_inputs
from tests.tasks.shapes import Shapes
from tests.tasks.test_mixes import episodes_of, problem_of

KNOWN_BY_HEART = {
    "which.accuracy": 1.0,
    "disc.auroc": 1.0,
    "shown.f1": 1.0,
    "amount.r2": 0.95,
    "place.r2": 0.95,
    "pixels.miou": 0.6,
    "pixels.pixel_accuracy": 0.97,
    "far.delta_1": 0.93,
    "facing.within_22": 0.95,
    "boxes.map": 0.85,
}


@pytest.mark.slow
def test_a_few_pictures_are_learned_by_heart() -> None:
    source = Shapes(queries=8, shots=1, unboxed=0.5)
    algorithm = problem_of(source, encoder=ConvSpec(channels=(16, 32)), inner_steps=0)
    episodes = episodes_of(source, 1)
    params = algorithm.init_params()
    optimizer = torch.optim.Adam(params.values(), lr=0.01)
    for _ in range(200):
        for name, gradient in meta_gradient(algorithm, params, episodes).grads.items():
            params[name].grad = gradient
        optimizer.step()
    query = Episode(*episodes).query
    with torch.no_grad():
        found = algorithm.predict(params, shared_inputs(query)[0])
    own = query._replace(
        targets={name: target[0] for name, target in query.targets.items()},
        masks={name: mask[0] for name, mask in query.masks.items()},
    )
    counts = label_counts(algorithm.tasks, own)
    assert counts[-1] < 8
    scores = metric_values(algorithm.tasks, metric_sums(algorithm.tasks, found, own), counts)
    reached = {name: float(scores[name]) for name in KNOWN_BY_HEART}
    assert all(value >= KNOWN_BY_HEART[name] for name, value in reached.items()), reached
