"""Hard parameter sharing."""

from typing import Any

import pytest
import torch

from raymtl.encoders import ConvSpec, MLPSpec
from raymtl.encoders.norm import NormedSpec
from raymtl.sharing import HardSpec
from raymtl.tasks import classification, regression

pytestmark = pytest.mark.usefixtures("float64")

TASKS = (classification("a", 4), classification("b", 3), regression("c", 0.0, 1.0))
NAMES = tuple(task.name for task in TASKS)
ENCODERS = {"mlp": (MLPSpec(hidden=(6, 5)), (4,)), "conv": (ConvSpec(channels=(4, 4)), (1, 6, 6))}
over_the_encoders = pytest.mark.parametrize("encoder, shape", ENCODERS.values(), ids=ENCODERS)


@over_the_encoders
def test_the_trunk_follows_the_weighted_sum(encoder: NormedSpec, shape: tuple[int, ...]) -> None:
    """A head follows its own task alone."""
    model = HardSpec().build(TASKS, [encoder.build(shape)])
    named, weights = dict(model.named_parameters()), dict(zip(NAMES, (0.2, 0.5, 3.0), strict=True))
    losses = {
        task: prediction.square().mean()
        for task, prediction in model(torch.randn(5, *shape)).items()
    }

    def gradients(loss: Any) -> Any:
        found = torch.autograd.grad(
            loss, tuple(named.values()), retain_graph=True, allow_unused=True
        )
        return dict(zip(named, found, strict=True))

    total = gradients(sum(weights[task] * losses[task] for task in NAMES))
    of_tasks = {task: gradients(loss) for task, loss in losses.items()}
    for name in named:
        if name in model.shared:
            torch.testing.assert_close(
                total[name], sum(weights[task] * of_tasks[task][name] for task in NAMES)
            )
        else:
            (owner,) = (task for task in NAMES if of_tasks[task][name] is not None)
            assert name.startswith(f"heads.{owner}.")
            torch.testing.assert_close(total[name], weights[owner] * of_tasks[owner][name])


def test_the_trunk_runs_once_for_all_tasks() -> None:
    encoder, shape = ENCODERS["mlp"]
    model = HardSpec().build(TASKS, [encoder.build(shape)])
    calls: list[int] = []
    model.encoders[0].register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    own = {task: torch.randn(1 + i, *shape) for i, task in enumerate(NAMES)}
    features = model(own, output="features")
    assert calls == [6]
    for task in NAMES:
        torch.testing.assert_close(features[task], model.encoders[0](own[task]))
