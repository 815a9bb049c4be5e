"""Cross-stitch networks."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raymtl.encoders import ConvSpec, LeNetSpec, MLPSpec
from raymtl.encoders.norm import NormedSpec
from raymtl.sharing import CrossStitchSpec
from raymtl.tasks import regression

pytestmark = pytest.mark.usefixtures("float64")

TASKS = tuple(regression(name, 0.0, 1.0) for name in "abc")
NAMES = tuple(task.name for task in TASKS)
ENCODERS = {
    "mlp": (MLPSpec(hidden=(6, 5)), (4,)),
    "conv": (ConvSpec(channels=(4, 8)), (1, 6, 6)),
    "lenet": (LeNetSpec(maps=(2, 3), hidden=(6,)), (1, 16, 16)),
}
over_the_encoders = pytest.mark.parametrize("encoder, shape", ENCODERS.values(), ids=ENCODERS)


def build(encoder: Any, shape: tuple[int, ...], num_tasks: int = 3, **numbers: Any) -> Any:
    return CrossStitchSpec(**numbers).build(
        TASKS[:num_tasks], [encoder.build(shape) for _ in range(num_tasks)]
    )


@over_the_encoders
def test_features_equal_the_papers_loop(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    model, inputs = build(encoder, shape), torch.randn(2, *shape)
    with torch.no_grad():
        model.stitches.copy_(torch.randn_like(model.stitches))
    x = [inputs] * 3
    for depth in range(len(model.encoders[0].stages)):
        outputs = [model.encoders[s].stages[depth](x[s]) for s in range(3)]
        x = [sum(model.stitches[depth, t, s] * outputs[s] for s in range(3)) for t in range(3)]
    for t, own in enumerate(model(inputs, output="features").values()):
        torch.testing.assert_close(own, x[t].reshape(2, -1))


def test_towers_run_once_for_all_tasks() -> None:
    model = build(*ENCODERS["mlp"])
    calls: list[int] = []
    for encoder in model.encoders:
        encoder.stages[0].register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    model({task: torch.randn(1 + i, 4) for i, task in enumerate(NAMES)})
    assert calls == [6, 6, 6]


@pytest.mark.parametrize("num_tasks, other", [(1, None), (2, 0.3), (3, 0.15)])
def test_the_rest_is_spread_over_the_others(num_tasks: int, other: float | None) -> None:
    """What `own` leaves of a row of the stitches."""
    stitch = build(*ENCODERS["mlp"], num_tasks, own=0.7).stitches[0]
    for t in range(num_tasks):
        for s in range(num_tasks):
            assert stitch[t, s].item() == pytest.approx(
                (0.7 if other else 1.0) if s == t else other
            )


def test_stitches_have_a_learning_rate_of_their_own() -> None:
    model = build(*ENCODERS["mlp"], lr_scale=7.0)
    assert model.lr_scale == {"stitches": 7.0} and "stitches" in dict(model.named_parameters())


@pytest.mark.parametrize("numbers", [{"own": 1.1}, {"own": -0.1}, {"lr_scale": 0.0}])
def test_what_is_no_stitch_is_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(numbers))):
        CrossStitchSpec(**numbers)
