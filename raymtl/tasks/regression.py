"""One number, or a vector of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from raymtl.tasks.groups import SharedLoss
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
    return _vector_task(name, _Vector(tuple(mean), tuple(std), LOSSES[loss], _is_number))


def _scalar(name: str, mean: float, std: float, loss: Callable[[Tensor], Tensor]) -> Task:
    # Nothing of a number is missing: one that is nan is a mistake, which the loss shows.
    vector = _vector_task(name, _Vector((mean,), (std,), loss, _is_any))

    def column(target: Tensor) -> Tensor:
        return target[:, None]

    def of_columns(metric: Metric) -> Metric:
        return metric._replace(
            update=lambda prediction, target: metric.update(prediction, column(target))
        )

    return vector._replace(
        metrics={key: of_columns(metric) for key, metric in vector.metrics.items()},
        decode=lambda prediction: vector.decode(prediction)[:, 0],
        encode_target=lambda target: _standardised(column(target), (mean,), (std,)),
        target_shape=(),
        label_mask=None,
    )


Numbers = Sequence[float] | Tensor


def _standardised(target: Tensor, mean: Numbers, std: Numbers) -> Tensor:
    """Targets [N, D] -> as many standardised ones in the default precision, or float64 as the tests
    have it.
    """
    values = target.double()  # what stands in for a masked label may be whole numbers
    centre = torch.as_tensor(mean, dtype=values.dtype, device=values.device)
    scale = torch.as_tensor(std, dtype=values.dtype, device=values.device)
    return ((values - centre) / scale).to(torch.get_default_dtype())


def _is_number(target: Tensor) -> Tensor:
    """Which components of targets [N, D] are not nan."""
    return ~target.isnan()


def _has_numbers(target: Tensor) -> Tensor:
    """Which of the targets [N, D] have a component, [N]."""
    return _is_number(target).any(1)


def _is_any(target: Tensor) -> Tensor:
    """All components of targets [N, D]."""
    return torch.ones_like(target, dtype=torch.bool)


Column = Callable[[Tensor, Tensor], Tensor]
"""Errors and targets in units of `std`, [N, D] each -> what a score adds up, [N, D]."""


def _error(
    prediction: Tensor, target: Tensor, known: Tensor, mean: Numbers, std: Numbers
) -> Tensor:
    """In units of `std`, [N, D]; 0 where a component is missing."""
    truth = torch.where(known, _standardised(target, mean, std), 0.0)
    return torch.where(known, prediction - truth.to(_at_least_single(prediction)), 0.0)


@dataclass(frozen=True)
class _Loss:
    """The mean over the components that there are, of targets [N, D], or [N] for one number."""

    loss_of: Callable[[Tensor], Tensor]
    known: Callable[[Tensor], Tensor]

    def __call__(self, prediction: Tensor, target: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        columns = target.reshape(prediction.shape)
        known = self.known(columns)
        error = _error(prediction, columns, known, mean, std)
        return mean_where(self.loss_of(error), known)


class _Vector(NamedTuple):
    """Standardises vectors, and makes losses and scores of their errors."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    loss_of: Callable[[Tensor], Tensor]
    known: Callable[[Tensor], Tensor]
    """Which components of targets [N, D] there are."""

    def standardised(self, target: Tensor) -> Tensor:
        """0, which is the mean, where a component is missing."""
        return torch.where(self.known(target), _standardised(target, self.mean, self.std), 0.0)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """In units of `std`; 0 where a component is missing."""
        return _error(prediction, target, self.known(target), self.mean, self.std)

    @property
    def loss(self) -> SharedLoss:
        """The mean over the components that there are, [N]."""
        return SharedLoss(_Loss(self.loss_of, self.known), (self.mean, self.std))

    def decode(self, prediction: Tensor) -> Tensor:
        """Predictions in the unit of the target."""
        values = prediction.double()
        return values * values.new_tensor(self.std) + values.new_tensor(self.mean)

    def sums(self, *columns: Column) -> Column:
        """The columns, then which components there are, [N, D * (columns + 1)] float64."""

        def update(prediction: Tensor, target: Tensor) -> Tensor:
            off = self.error(prediction, target).double()
            truth = self.standardised(target).double()
            values = [column(off, truth) for column in columns]
            return torch.cat([*values, self.known(target).double()], 1)

        return update

    def absolute(self, off: Tensor, _: Tensor) -> Tensor:
        """In the unit of the target."""
        return off.abs() * off.new_tensor(self.std)

    def root(self, sums: Tensor, _: Tensor) -> Tensor:
        """The root of the mean squared error in the unit of the target, over the components."""
        errors, count = sums.chunk(2, -1)
        return ((errors / count).sqrt() * errors.new_tensor(self.std)).nanmean(-1)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        number = len(self.mean)
        r2 = self.sums(_squared_error, _truth, _squared_truth)
        rrmse = self.sums(_squared_error, _squared_truth)
        return {
            "r2": Metric(r2, True, ratio_scale=False, state_size=4 * number, compute=_r2),
            "mae": Metric(
                self.sums(self.absolute), False, state_size=2 * number, compute=mean_ratio
            ),
            "rmse": Metric(
                self.sums(_squared_error), False, state_size=2 * number, compute=self.root
            ),
            "rrmse": Metric(
                rrmse,
                False,
                ratio_scale=False,  # its relative change is that of rmse
                state_size=3 * number,
                compute=_relative_root,
            ),
        }


def _squared_error(off: Tensor, _: Tensor) -> Tensor:
    return off.square()


def _truth(_: Tensor, truth: Tensor) -> Tensor:
    return truth


def _squared_truth(_: Tensor, truth: Tensor) -> Tensor:
    return truth.square()


def _r2(sums: Tensor, _: Tensor) -> Tensor:
    errors, total, squares, count = sums.chunk(4, -1)
    about_mean = squares - total.square() / count
    constant = about_mean <= CONSTANT * squares
    return torch.where(constant, torch.nan, 1 - errors / about_mean).nanmean(-1)


def _relative_root(sums: Tensor, _: Tensor) -> Tensor:
    errors, squares, _count = sums.chunk(3, -1)
    return torch.where(squares > 0, (errors / squares).sqrt(), torch.nan).nanmean(-1)


def _vector_task(name: str, vector: _Vector) -> Task:
    number = len(vector.mean)
    return Task(
        name=name,
        kind=REGRESSION,
        out_features=number,
        head=lambda shape: nn.Linear(math.prod(shape), number),
        loss=vector.loss,
        metrics=vector.metrics,
        decode=vector.decode,
        encode_target=vector.standardised,
        target_shape=(number,),
        label_mask=_has_numbers,
        quadratic=vector.loss_of is _squared,
    )


def _at_least_single(prediction: Tensor) -> torch.dtype:
    """float32 where the prediction has fewer digits, as under autocast."""
    return torch.promote_types(prediction.dtype, torch.float32)
