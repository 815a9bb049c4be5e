"""One number, or a vector of them."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from raymtl.tasks.maps import moments_of
from raymtl.tasks.scores import mean_ratio, mean_where
from raymtl.types import LabelStatistics, Metric, Task, TaskKind

Loss = Literal["squared", "absolute", "huber"]
CONSTANT = 1e-13
"""Targets whose sum of squares about their mean is a smaller share of their sum of squares than
this are all equal.
"""


class RegressionKind(TaskKind):
    """Targets are numbers, or vectors of them."""

    name = "regression"
    label_form = "number"
    predicts_numbers = True

    def make(self, name: str, labels: LabelStatistics, size: tuple[int, int]) -> Task:
        loss = labels.loss or "squared"
        if labels.is_vector:
            return regression(name, labels.means, labels.stds, loss=loss)
        return regression(name, labels.means[0], labels.stds[0], loss=loss)

    def summarise(self, target: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
        known = target[~np.isnan(target)].astype(np.float64)
        if not known.size:
            return {}
        scale = float(np.abs(known).max()) or 1.0  # squares of the smallest numbers would be 0
        return {key: scale * value for key, value in moments_of(known / scale).items()}


REGRESSION = RegressionKind()


def _squared(error: Tensor) -> Tensor:
    return error.square()


def _absolute(error: Tensor) -> Tensor:
    return error.abs()


def _huber(error: Tensor) -> Tensor:
    """Half the square up to 1, then linear."""
    size = error.abs()
    return torch.where(size < 1, size.square() / 2, size - 0.5)


LOSSES: dict[Loss, Callable[[Tensor], Tensor]] = {
    "squared": _squared,
    "absolute": _absolute,
    "huber": _huber,
}


def regression(
    name: str,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    *,
    loss: Loss = "squared",
) -> Task:
    """Numbers, from their error in units of `std`; `mean` and `std` are those of the training
    targets.

    Floats stand for one number, targets [N]; sequences of D floats for a vector, targets [N, D], in
    which nan stands for a component that is missing. The loss is the squared error (no factor 1/2),
    the absolute one, or Huber's, of the standardised target, a mean over the components that are
    there.

    Targets may be float64, which they are best: they are standardised before they are rounded to
    what predictions have, so that 1e9 +- 10 is learned and scored as 0 +- 10 is.

    Metrics: `r2` = 1 - sum of squared errors / sum of squares about the mean of the scored targets,
    none where these are all equal; `mae` and `rmse` in the target's own unit; `rrmse`, `rmse`
    divided by that of always predicting `mean`, so that 1 is of no use whatever the unit. Those of
    a vector are means over its components.
    """
    if isinstance(mean, float | int) and isinstance(std, float | int):
        return _scalar(name, mean, std, LOSSES[loss])
    assert isinstance(mean, Sequence) and isinstance(std, Sequence)
    return _vector(name, tuple(mean), tuple(std), LOSSES[loss])


def _scalar(name: str, mean: float, std: float, loss: Callable[[Tensor], Tensor]) -> Task:
    # Nothing of a number is missing: one that is nan is a mistake, which the loss shows.
    vector = _vector(
        name, (mean,), (std,), loss, lambda target: torch.ones_like(target, dtype=torch.bool)
    )

    def column(target: Tensor) -> Tensor:
        return target[:, None]

    def of_columns(metric: Metric) -> Metric:
        return metric._replace(
            update=lambda prediction, target: metric.update(prediction, column(target))
        )

    return vector._replace(
        loss=lambda prediction, target: vector.loss(prediction, column(target)),
        metrics={key: of_columns(metric) for key, metric in vector.metrics.items()},
        decode=lambda prediction: vector.decode(prediction)[:, 0],
        encode_target=lambda target: _standardised(column(target), (mean,), (std,)),
        target_shape=(),
        label_mask=None,
    )


def _standardised(target: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Targets [N, D] -> as many standardised ones in the default precision, or float64 as the tests
    have it.
    """
    values = target.double()  # what stands in for a masked label may be whole numbers
    return ((values - values.new_tensor(mean)) / values.new_tensor(std)).to(
        torch.get_default_dtype()
    )


def _there(target: Tensor) -> Tensor:
    """Which components of targets [N, D] are there."""
    return ~target.isnan()


def _vector(
    name: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    loss: Callable[[Tensor], Tensor],
    known: Callable[[Tensor], Tensor] = _there,
) -> Task:
    number = len(mean)

    def standardised(target: Tensor) -> Tensor:
        """0, which is the mean, where a component is missing."""
        return torch.where(known(target), _standardised(target, mean, std), 0.0)

    def error(prediction: Tensor, target: Tensor) -> Tensor:
        return torch.where(
            known(target), prediction - standardised(target).to(_at_least_single(prediction)), 0.0
        )

    def losses(prediction: Tensor, target: Tensor) -> Tensor:
        return mean_where(loss(error(prediction, target)), known(target))

    def parts(*columns: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """Columns [N, D] of errors and targets in units of `std`, then which components are there,
        all in float64.
        """

        def update(prediction: Tensor, target: Tensor) -> Tensor:
            off, own = error(prediction, target).double(), standardised(target).double()
            return torch.cat([*(column(off, own) for column in columns), known(target).double()], 1)

        return update

    def squared(off: Tensor, _: Tensor) -> Tensor:
        return off.square()

    def r2(sums: Tensor, _: Tensor) -> Tensor:
        errors, total, squares, count = sums.chunk(4, -1)
        about_mean = squares - total.square() / count
        constant = about_mean <= CONSTANT * squares
        return torch.where(constant, torch.nan, 1 - errors / about_mean).nanmean(-1)

    def relative(sums: Tensor, _: Tensor) -> Tensor:
        errors, squares, _count = sums.chunk(3, -1)
        return torch.where(squares > 0, (errors / squares).sqrt(), torch.nan).nanmean(-1)

    def absolute(off: Tensor, _: Tensor) -> Tensor:
        return off.abs() * off.new_tensor(std)

    def root(sums: Tensor, _: Tensor) -> Tensor:
        errors, count = sums.chunk(2, -1)
        return ((errors / count).sqrt() * errors.new_tensor(std)).nanmean(-1)

    def decode(prediction: Tensor) -> Tensor:
        values = prediction.double()
        return values * values.new_tensor(std) + values.new_tensor(mean)

    squares = parts(squared, lambda _, own: own, lambda _, own: own.square())
    return Task(
        name=name,
        kind=REGRESSION,
        out_features=number,
        head=lambda shape: nn.Linear(math.prod(shape), number),
        loss=losses,
        metrics={
            "r2": Metric(squares, True, ratio_scale=False, state_size=4 * number, compute=r2),
            "mae": Metric(parts(absolute), False, state_size=2 * number, compute=mean_ratio),
            "rmse": Metric(parts(squared), False, state_size=2 * number, compute=root),
            "rrmse": Metric(
                parts(squared, lambda _, own: own.square()),
                False,
                ratio_scale=False,  # its relative change is that of rmse
                state_size=3 * number,
                compute=relative,
            ),
        },
        decode=decode,
        encode_target=standardised,
        target_shape=(number,),
        label_mask=lambda target: known(target).any(1),
        quadratic=loss is _squared,
    )


def _at_least_single(prediction: Tensor) -> torch.dtype:
    """float32 where the prediction has fewer digits, as under autocast."""
    return torch.promote_types(prediction.dtype, torch.float32)
