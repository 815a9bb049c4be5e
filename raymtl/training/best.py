"""The best model of a training so far. All workers have the same scores, so all decide alike."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from raymtl.config import Experiment
from raymtl.evaluation.kept import BEST_STEP

Scores = Mapping[str, float | None]


class Best(NamedTuple):
    """The model with the best score so far."""

    step: int
    score: float
    params: Mapping[str, Tensor]
    """Copies of the parameters after this step; empty unless `train.keep` is `best`."""


class BestTracker:
    """Tracks the best model of a training by `train.metric`, where the configuration needs it.

    Where there are stages, it belongs to the last one.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.train = experiment.train
        self.higher_is_better = experiment.metric_directions()[self.train.metric]
        self.best: Best | None = None
        """None until there is a score, and where nothing is tracked."""

    @property
    def best_step(self) -> int | None:
        """The step of the best model."""
        if self.best is None:
            return None
        return self.best.step

    def update(self, step: int, scores: Scores, params: Mapping[str, Tensor]) -> Scores:
        """Takes the scores of a step, and returns them with the best step so far.

        Of equal scores the earlier one is the better. A step without the score is passed over.
        """
        if self.train.keep == "last" and self.train.patience is None:
            return scores
        score = scores.get(self.train.metric)
        if score is not None and self._is_better(score):
            copies: dict[str, Tensor] = {}
            if self.train.keep == "best":
                copies = {name: value.detach().clone() for name, value in params.items()}
            self.best = Best(step, score, copies)
        if not scores or self.best is None:
            return scores
        return {**scores, BEST_STEP: self.best.step}

    def _is_better(self, score: float) -> bool:
        if self.best is None:
            return True
        if self.higher_is_better:
            return score > self.best.score
        return score < self.best.score
