"""Multi-task training without adaptation (Caruana, 1997): min over theta of sum_t w_t L_t."""

from typing import ClassVar, Literal

from raymtl.learners.base import MetaLearner, Objective
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params


class Plain(MetaLearner):
    """Trains one model for all tasks, without support sets and without an inner loop.

    A step is on `train.batch_size` rows of each task. Without it a step is on the query sets of
    `train.meta_batch` episodes, whose support sets are not drawn. The model predicts rows as it is,
    so every table has one score for each task.

    Example: `learner: {name: none}`
    """

    name: Literal["none"] = "none"
    helps: ClassVar[str] = "the tasks to predict are those trained on: most users begin here"
    costs: ClassVar[str] = "1"
    reads_support: ClassVar[bool] = False

    @property
    def num_steps(self) -> int:
        return 0

    def adapt(
        self,
        model: SharingArchitecture,
        params: Params,
        support: Batch,
        objective: Objective,
        steps: int | None = None,
    ) -> Params:
        return params
