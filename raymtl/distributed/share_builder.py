"""Builds the episodes of one share of a step, in a Train worker or in a builder."""

from raymtl.config import Experiment
from raymtl.data.base import Arrays
from raymtl.data.episodes import build_meta_batch
from raymtl.step.workers import Workers
from raymtl.types import Episode


class ShareBuilder:
    """Builds the shares of a training, of all its stages, in a given number of shares a step."""

    def __init__(self, experiment: Experiment, arrays: Arrays, num_shares: int) -> None:
        self.stages = experiment.stage_configs()
        self.arrays, self.num_shares = arrays, num_shares

    def build(self, step: int, share: int) -> tuple[Episode, ...]:
        """The episodes of a share of a step, which is counted over all stages."""
        stage = max(
            (stage for stage in self.stages if stage.start <= step), key=lambda stage: stage.start
        )
        experiment = stage.experiment
        worker = Workers(rank=share, size=self.num_shares)
        meta_batch = experiment.train.num_episodes
        return build_meta_batch(
            experiment.training_data,
            self.arrays,
            seed=experiment.seed,
            step=step,
            indices=worker.share(meta_batch),
            meta_batch=meta_batch,
        )
