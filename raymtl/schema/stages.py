"""Trainings that come before that of the configuration itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import PositiveInt

from raymtl.schema.base import Config
from raymtl.schema.space import SEARCHABLE_TRAIN
from raymtl.types import Spec, UserError

STAGED = ("learner.", "weighting.", "mode.")
STAGED_VALUES = (*SEARCHABLE_TRAIN, "data.shots", "data.queries", "data.ways")


class StageSection(Spec):
    """A training that comes before that of the configuration itself, such as multi-task
    pre-training.

    `set` holds the dotted values in which it differs from the configuration: of the learner, the
    weighting, the mode, the outer optimiser, and how many examples an episode has. What the model
    is made of is the same in all stages.

    Example: `stages: [{steps: 500, set: {learner.inner_steps: 0}}]`
    """

    steps: PositiveInt
    """The number of its steps, a part of `train.steps`."""
    set: Mapping[str, Any] = {}


def check_stage_keys(stages: Sequence[StageSection]) -> None:
    """Raises UserError if a stage sets a value that is the same for the whole training."""
    for number, stage in enumerate(stages):
        for key in stage.set:
            if not key.startswith(STAGED) and key not in STAGED_VALUES:
                raise UserError(
                    f"stages.{number}.set: {key}: expected a value that stages may differ in "
                    f"({', '.join(STAGED)}, {', '.join(STAGED_VALUES)}), got another. Set it "
                    "for all stages alike."
                )


def in_stage(config: Config, stage: StageSection, number: int) -> Config:
    """The configuration with the values of the stage of this number. Raises UserError."""
    try:
        return config.override({**stage.set, "train.steps": stage.steps})
    except UserError as error:
        raise UserError(f"stages.{number}.set: {error}") from None
