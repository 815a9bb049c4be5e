"""The Experiment: everything a run depends on."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator

from raymtl.config import checks
from raymtl.config.sections import Evaluate, Train, Tune
from raymtl.data import Arrays, Digits, Source, SourceSpec
from raymtl.encoders import ConvSpec, Encoder, EncoderSpec
from raymtl.encoders.dropout import number_layers
from raymtl.encoders.front import balance, front_of
from raymtl.encoders.norm import BatchStatistics
from raymtl.learners import MAML, LearnerSpec
from raymtl.modes import ModeSpec, Weighted
from raymtl.schema import base
from raymtl.schema.distributions import Distribution
from raymtl.schema.names import nearest
from raymtl.schema.stages import StageSection, check_stage_keys, in_stage
from raymtl.sharing import HardSpec, SharingArchitecture, SharingSpec
from raymtl.step.algorithm import Algorithm
from raymtl.storage.notes import Note
from raymtl.storage.yaml_text import write_yaml
from raymtl.types import Task, UserError
from raymtl.weighting import StaticSpec, WeightingSpec


class StageConfig(NamedTuple):
    """One stage of a training as a complete configuration, and the step that it begins at."""

    start: int
    experiment: "Experiment"

    @property
    def stop(self) -> int:
        """The step after its last one."""
        return self.start + self.experiment.train.steps


class Experiment(base.ExperimentBase):
    """Everything a run depends on. The dotted path of a field is its name in YAML, `--set`, the
    search and reports.
    """

    name: base.RunName = "run"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    output: str = "runs"
    """Folder of the run folders."""
    track: tuple[Literal["mlflow", "wandb"], ...] = ()
    """Trackers that get the numbers of a run while it goes on (docs/tracking.md)."""
    data: SourceSpec = Digits()
    encoder: EncoderSpec = ConvSpec()
    sharing: SharingSpec = HardSpec()
    weighting: WeightingSpec = StaticSpec()
    learner: LearnerSpec = MAML()
    mode: ModeSpec = Weighted()
    train: Train = Train()
    stages: tuple[StageSection, ...] = ()
    """What comes first, in this order; the configuration itself is the last stage and has the rest
    of the steps.
    """
    evaluate: Evaluate = Evaluate()
    tune: Tune = Tune()
    search: Mapping[str, Distribution] = {}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        """Makes the checks that read no file; those of the tasks where these are known."""
        checks.check_mode(self.mode, self.learner)
        checks.check_rows(self.train, self.learner, self.sharing)
        checks.check_epochs(self.train, self.search)
        checks.check_encoder(self.encoder, self.learner)
        checks.check_workers(self.train)
        checks.check_graph(self.train, self.encoder)
        checks.check_lanes(self.data, self.train)
        checks.check_frozen_search(self.encoder, self.search)
        if self.is_resolved:
            self._check_tasks()
        return self

    @property
    def is_resolved(self) -> bool:
        counted = self.train.epochs is None or self.train.epoch_rows is not None
        return self.data.is_resolved and self.encoder.is_resolved and counted

    def resolve(self) -> Self:
        if self.is_resolved:
            return self
        data = self.data.resolve()
        encoder = self.encoder.resolve(data.encoder_shape)
        train = self.train
        if train.epochs is not None and train.epoch_rows is None:
            rows = checks.rows_of_epoch(data)
            train = Train.model_validate({**train.model_dump(), "epoch_rows": rows})
        resolved = self.model_copy(update={"data": data, "encoder": encoder, "train": train})
        resolved._check_tasks()
        return resolved

    def _check_tasks(self) -> None:
        """Refuses methods, objectives and stages that cannot be with the tasks of the data."""
        checks.check_frozen(self.encoder, self.data)
        checks.check_search(self.tune, self.train)
        checks.check_learner(self.learner, self.data)
        checks.check_support(self.learner, self.data)
        checks.check_weighting(self.weighting, self.learner, self.mode, self.data.task_names)
        self._check_methods()
        checks.check_objectives(self.tune, self.metric_names())
        checks.check_selection(self.train, self.metric_names())
        checks.check_no_decay(self.train.no_decay, self._parameter_names)
        self._check_comparisons()
        self._check_stages()

    def _check_methods(self) -> None:
        """Asks each method what it cannot do with these tasks, as a key of it and the reason."""
        names = self.data.task_names
        encoder = _shapes_of(self.encoder, self.data.encoder_shape, self.learner.num_steps)
        checks.check_stages(self.sharing, encoder)
        checks.check_norms(encoder, self.learner)
        refusals = (
            ("learner", self.learner.check_parameters(self._parameter_names)),
            ("weighting", self.weighting.check(names)),
            ("mode", self.mode.check(names)),
            ("sharing", self.sharing.check(self.data.make_tasks(), encoder)),
        )
        for section, refusal in refusals:
            if not refusal:
                continue
            key, reason = refusal
            hint = ""
            if not set(key.split(".")) & set(names):
                hint = nearest(key, names)
            raise UserError(f"{section}.{key}: {reason}{hint}")

    def notes(self) -> tuple[Note, ...]:
        """What its methods decide for the user; the data have notes of their own."""
        encoder = _shapes_of(self.encoder, self.data.encoder_shape, self.learner.num_steps)
        return (*self.train.notes(), *self.sharing.notes(encoder))

    @property
    def training_data(self) -> Source:
        """What the episodes of training are drawn from: without support sets where none is read.

        With `train.batch_size` an episode is one row of each task.
        """
        if self.learner.reads_support:
            return self.data
        if self.train.batch_size is None:
            return self.data.without_support()
        return self.data.without_support(queries=1)

    def notes_on_steps(self, arrays: Arrays) -> tuple[Note, ...]:
        """A note on each task that sees less than one row a step on average."""
        labels = self.training_data.expected_labels(arrays)
        return self.train.notes_on_rare(
            {name: self.train.num_episodes * each for name, each in labels.items()}
        )

    def _encoder(self) -> Encoder:
        return self.encoder.build(self.data.encoder_shape, self.learner.num_steps)

    def _parameter_names(self) -> list[str]:
        """Of the model, which is not initialised for it."""
        tasks = self.data.make_tasks()
        with torch.device("meta"):
            number = self.sharing.num_encoders(len(tasks))
            encoders = [self._encoder() for _ in range(number)]
            return [name for name, _ in self._model(tasks, encoders).named_parameters()]

    def _model(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> SharingArchitecture:
        """The architecture over these encoders, behind the front for the slots of the data."""
        model = self.sharing.build(tasks, encoders, isolate_task_graphs)
        model.front = front_of(self.data.input_shape, self.data.slots)
        return model

    def _check_comparisons(self) -> None:
        """Refuses an early end of trainings that the mode compares step by step."""
        patience = self.train.patience
        if patience is not None and self.mode.comparisons(self.data.task_names, self.seed):
            raise UserError(
                f"train.patience: expected none with mode.name: {self.mode.name}, which compares "
                f"trainings of equal length, got {patience}. Leave one of them away."
            )

    def _check_stages(self) -> None:
        taken = sum(stage.steps for stage in self.stages)
        if taken >= self.train.steps:
            raise UserError(
                f"stages: expected fewer steps together than train.steps: {self.train.steps}, the "
                f"rest of which is the configuration's own, got {taken}. Raise train.steps or "
                "shorten the stages."
            )
        if self.stages and self.mode.comparisons(self.data.task_names, self.seed):
            raise UserError(
                f"stages: expected none with mode.name: {self.mode.name}, which compares whole "
                f"trainings, got {len(self.stages)}. Leave one of them away."
            )
        check_stage_keys(self.stages)
        self.stage_configs()

    def stage_configs(self) -> tuple[StageConfig, ...]:
        """All stages of the training in their order; the last one is the configuration itself."""
        alone = self.model_copy(update={"stages": (), "tune": Tune(), "search": {}})
        configs: list[StageConfig] = []
        start = 0
        for number, stage in enumerate(self.stages):
            configs.append(StageConfig(start, in_stage(alone, stage, number)))
            start += stage.steps
        rest = self.train.model_copy(update={"steps": self.train.steps - start})
        return (*configs, StageConfig(start, alone.model_copy(update={"train": rest})))

    def metric_names(self) -> list[str]:
        """What a trial reports and a search can optimise."""
        return list(self.metric_directions())

    def metric_directions(self) -> dict[str, bool]:
        """What a trial reports -> whether higher is better."""
        own = {
            f"val.{task.name}.{name}": metric.higher_is_better
            for task in self.data.make_tasks()
            for name, metric in task.metrics.items()
        }
        means = {f"val.{name.rpartition('.')[2]}": higher for name, higher in own.items()}
        return {
            "val.score": True,
            "val.loss": False,
            **own,
            **means,
            "num_parameters": False,
            "seconds": False,
        }

    def build(self, pretrained: bool = True) -> Algorithm:
        """The three axes on the tasks, initialised from `seed`; raises nothing that validation has
        not.

        Without `pretrained` the encoder has random values in the place of its pre-trained ones: all
        are then to be read from a model's file, and the weights need not be there.
        """
        tasks = self.data.make_tasks()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            encoders = [self._encoder() for _ in range(self.sharing.num_encoders(len(tasks)))]
            for encoder in encoders:
                balance(encoder, math.prod(self.data.input_shape), self.data.slots)
            if pretrained:
                for encoder in encoders:
                    self.encoder.initialise(encoder)
            # Batch norms take the statistics of all examples that pass together.
            normalises = any(isinstance(part, BatchStatistics) for part in encoders[0].modules())
            isolate_task_graphs = self.weighting.needs_gradients and not normalises
            model = self._model(tasks, encoders, isolate_task_graphs)
        number_layers(model.prediction_modules())
        return Algorithm(tasks, model, self.weighting.build(tasks), self.learner, self.seed)

    def save(self, path: Path) -> None:
        """Writes the complete configuration, which `load` gives back unchanged."""
        path.write_text(write_yaml(self.model_dump(mode="json")), encoding="utf8")


@lru_cache(maxsize=64)
def _shapes_of(spec: EncoderSpec, input_shape: tuple[int, ...], inner_steps: int) -> Encoder:
    """An encoder without numbers, whose shapes are asked for; a search has few and asks often."""
    with torch.device("meta"):
        return spec.build(input_shape, inner_steps)


def parse(tree: Mapping[str, Any]) -> Experiment:
    """Validates a plain tree; raises UserError that begins with the dotted key. It reads no file:
    `resolve` does.
    """
    return base.parse(Experiment, tree)
