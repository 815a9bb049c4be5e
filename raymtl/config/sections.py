"""The sections of an experiment that choose no method: how long, how wide, how often."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from raymtl.step.execution import Precision
from raymtl.types import Spec


class Train(Spec):
    """The outer loop. One step is one meta-batch over all workers and one move of the optimiser."""

    steps: PositiveInt = 1000
    meta_batch: PositiveInt = 8
    """Episodes a step, over all workers."""
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: PositiveFloat = 0.003
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How the learning rate falls to 0 at the last step."""
    clip_norm: PositiveFloat | None = 10.0
    """Longest meta-gradient that is followed as it is; longer ones are shortened to it."""
    weight_decay: NonNegativeFloat = 0.0
    """What a weight of the model loses in a step is lr * weight_decay of itself, beside its
    gradient's share.

    That is decoupled as in AdamW (arXiv:1711.05101). Biases and scales, which have one dimension,
    lose nothing.
    """
    workers: PositiveInt = 1
    min_workers: PositiveInt | None = None
    """Fewest workers to train on, where machines come and go: as many train as fit, `workers` of
    them at most.
    """
    cpus_per_worker: PositiveFloat = 1.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU for each worker where the cluster has them."""
    precision: Precision = "float32"
    task_axis: Literal["auto", "vmap", "loop"] = "auto"
    """How the episodes of a step are run; `auto` measures both on the first one and keeps the
    faster.
    """
    chunk: PositiveInt | None = None
    """Episodes that vmap takes at once; fewer need less memory."""
    eval_every: PositiveInt = 100
    """Steps between scores on the validation split, each with a checkpoint."""
    checkpoint_share: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Largest share of its time that training spends on more checkpoints, between the scores."""
    wait_for_nodes_s: NonNegativeInt = 0
    """How long to wait for machines that an autoscaling cluster does not have yet; they are asked
    for first.
    """
    max_failures: NonNegativeInt = 3
    """How often a lost worker or trial is started again from its last checkpoint."""

    @property
    def fewest(self) -> int:
        """How many workers there must be room for."""
        return self.min_workers or self.workers


class Evaluate(Spec):
    """How many held-out episodes a score is a mean of."""

    val_episodes: Annotated[int, Field(ge=2)] = 32
    test_episodes: Annotated[int, Field(ge=2)] = 200


class ASHA(Spec):
    """Asynchronous successive halving (arXiv:1810.05934): stops a trial that is behind at a rung.

    The rungs are at `grace` steps and its multiples by `reduction`; the best 1 / `reduction` of a
    rung go on.
    """

    grace: PositiveInt = 100
    reduction: Annotated[float, Field(gt=1)] = 3.0
    metric: str | None = None
    """What ASHA compares; `tune.metric` unless given, and to be given where there are several."""


class TPE(Spec):
    """Tree-structured Parzen estimator (Optuna): `startup_trials` random trials come first."""

    startup_trials: PositiveInt = 6
    candidates: PositiveInt = 24
    multivariate: bool = True
    """Model the parameters jointly, in groups that occur together where `when` makes them
    conditional.
    """


Baseline = Literal["default", "joint", "single"]


class Tune(Spec):
    """The search. `metric` and `mode` are lists where several objectives are searched."""

    trials: PositiveInt = 20
    metric: str | Annotated[tuple[str, ...], Field(min_length=1)] = "val.score"
    mode: (
        Literal["max", "min"] | Annotated[tuple[Literal["max", "min"], ...], Field(min_length=1)]
    ) = "max"
    default_first: bool = True
    """Whether the first trial is the configuration's own values, where they lie inside the domains.
    """
    concurrency: PositiveInt | Literal["auto"] = "auto"
    """Trials at a time, never more than fit; `auto` is as many as fit when the search starts."""
    workers_per_trial: PositiveInt = 1
    """Ray Train workers of each trial; 1 runs the trial as a plain function."""
    cpus_per_trial: PositiveFloat = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs of each worker of a trial; `auto` is one where the cluster has any and `train.device`
    allows it.
    """
    sampler: TPE = TPE()
    asha: ASHA | None = None
    baselines: Literal["all", "none", "default", "joint", "single"] | tuple[Baseline, ...] = "all"
    """What the winner is compared with, each trained for as many steps as it."""

    @property
    def chosen_baselines(self) -> tuple[Baseline, ...]:
        """The kinds of baselines that are trained."""
        if self.baselines == "all":
            return ("default", "joint", "single")
        if self.baselines == "none":
            return ()
        if isinstance(self.baselines, tuple):
            return self.baselines
        return (self.baselines,)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The objectives."""
        if isinstance(self.metric, str):
            return (self.metric,)
        return self.metric

    @property
    def modes(self) -> tuple[Literal["max", "min"], ...]:
        """One for each objective."""
        if isinstance(self.mode, tuple):
            return self.mode
        return (self.mode,) * len(self.metrics)

    @property
    def asha_metric(self) -> str:
        """What ASHA compares."""
        return (self.asha.metric if self.asha else None) or self.metrics[0]


class StageSection(Spec):
    """A training that comes before that of the configuration itself, such as multi-task
    pre-training.

    `set` holds the dotted values in which it differs from the configuration: of the learner, the
    weighting, the mode, the outer optimiser, and how many examples an episode has. What the model
    is made of is the same in all stages.
    """

    steps: PositiveInt
    """Of train.steps, which are those of all stages together."""
    set: Mapping[str, Any] = {}
