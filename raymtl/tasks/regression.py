"""One number, or a vector of them."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from raymtl.tasks.scores import mean_ratio, mean_where
from raymtl.types import Metric, Task

Loss = Literal["squared", "absolute", "huber"]


def _squared(error: Tensor) -> Tensor:
    return error.square()


def _absolute(error: Tensor) -> Tensor:
    return error.abs()


def _huber(error: Tensor) -> Tensor:
    """Half the square up to 1, then linear."""
    size = error.abs()
    return torch.where(size < 1, size.square() / 2, size - 0.5)


LOSSES: dict[Loss, Callable[[Tensor], Tensor]] = {"squared": _squared, "absolute": _absolute, "huber": _huber}


def regression(
    name: str, mean: float | Sequence[float], std: float | Sequence[float], *, loss: Loss = "squared"
) -> Task:
    """Numbers, from their error in units of `std`; `mean` and `std` are those of the training targets.

    Floats stand for one number, targets [N]; sequences of D floats for a vector, targets [N, D], in which nan stands
    for a component that is missing. The loss is the squared error (no factor 1/2), the absolute one, or Huber's, of
    the standardised target, a mean over the components that are there.

    Metrics: `r2` = 1 - squared error / std^2, that is R^2 against the training variance, so that it is a mean over
    examples; `mae` and `rmse` in the target's own unit. Those of a vector are means over its components.
    """
    if isinstance(mean, float | int) and isinstance(std, float | int):
        return _scalar(name, mean, std, LOSSES[loss])
    assert isinstance(mean, Sequence) and isinstance(std, Sequence)
    return _vector(name, tuple(mean), tuple(std), LOSSES[loss])


def _scalar(name: str, mean: float, std: float, loss: Callable[[Tensor], Tensor]) -> Task:
    def error(prediction: Tensor, target: Tensor) -> Tensor:
        return prediction.squeeze(-1) - (target - mean) / std

    return Task(
        name=name,
        kind="regression",
        out_features=1,
        head=lambda shape: nn.Linear(math.prod(shape), 1),
        loss=lambda prediction, target: loss(error(prediction, target)),
        metrics={
            "r2": Metric(lambda prediction, target: 1 - error(prediction, target).square(), True, ratio_scale=False),
            "mae": Metric(lambda prediction, target: error(prediction, target).abs() * std, False),
            "rmse": Metric(
                lambda prediction, target: error(prediction, target).square() * std**2,
                False,
                value=lambda sums, count: (sums[..., 0] / count).sqrt(),
            ),
        },
        readable=lambda prediction: prediction.squeeze(-1) * std + mean,
        encoded=lambda target: (target[:, None] - mean) / std,
        quadratic=loss is _squared,
    )


def _vector(name: str, mean: tuple[float, ...], std: tuple[float, ...], loss: Callable[[Tensor], Tensor]) -> Task:
    number = len(mean)

    def known(target: Tensor) -> Tensor:
        return ~target.isnan()

    def standardised(target: Tensor) -> Tensor:
        """0, which is the mean, where a component is missing."""
        values = 1.0 * target  # what stands in for a masked label may be whole numbers
        values = (values - values.new_tensor(mean)) / values.new_tensor(std)
        return torch.where(known(target), values, 0.0)

    def error(prediction: Tensor, target: Tensor) -> Tensor:
        return torch.where(known(target), prediction - standardised(target), 0.0)

    def losses(prediction: Tensor, target: Tensor) -> Tensor:
        return mean_where(loss(error(prediction, target)), known(target))

    def absolute(prediction: Tensor, target: Tensor) -> Tensor:
        values = error(prediction, target).abs()
        return torch.cat([values * values.new_tensor(std), known(target).to(values)], 1)

    def squared(prediction: Tensor, target: Tensor) -> Tensor:
        values = error(prediction, target).square()
        return torch.cat([values, known(target).to(values)], 1)

    def root(sums: Tensor, _: Tensor) -> Tensor:
        above, below = sums.chunk(2, -1)
        return ((above / below).sqrt() * above.new_tensor(std)).nanmean(-1)

    return Task(
        name=name,
        kind="regression",
        out_features=number,
        head=lambda shape: nn.Linear(math.prod(shape), number),
        loss=losses,
        metrics={
            "r2": Metric(
                squared,
                True,
                ratio_scale=False,
                size=2 * number,
                value=lambda sums, count: 1 - mean_ratio(sums, count),
            ),
            "mae": Metric(absolute, False, size=2 * number, value=mean_ratio),
            "rmse": Metric(squared, False, size=2 * number, value=root),
        },
        readable=lambda prediction: prediction * prediction.new_tensor(std) + prediction.new_tensor(mean),
        encoded=standardised,
        target_shape=(number,),
        labelled=lambda target: known(target).any(1),
        quadratic=loss is _squared,
    )
