"""The losses of a new task."""

from abc import ABC, abstractmethod
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from raymtl.types import Spec


class Loss(Spec, ABC):
    """One value per example, of a prediction [N, out_features] and a target [N] as the head is to
    give it.
    """

    name: str

    @abstractmethod
    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """[N]; `target` is the class, or the standardised value."""


class CrossEntropy(Loss):
    """Cross-entropy; `label_smoothing` of the probability is spread over all classes evenly
    (arXiv:1512.00567).
    """

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            prediction, target, reduction="none", label_smoothing=self.label_smoothing
        )


class Squared(Loss):
    """Squared error, without the factor 1/2."""

    name: Literal["squared"] = "squared"

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.squeeze(-1) - target).square()


class Absolute(Loss):
    """Absolute error."""

    name: Literal["absolute"] = "absolute"

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.squeeze(-1) - target).abs()


class Huber(Loss):
    """Half the squared error up to `delta` standard deviations of the target, linear beyond."""

    name: Literal["huber"] = "huber"
    delta: PositiveFloat = 1.0

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(prediction.squeeze(-1), target, reduction="none", delta=self.delta)


LossSpec = Annotated[Absolute | CrossEntropy | Huber | Squared, Field(discriminator="name")]
