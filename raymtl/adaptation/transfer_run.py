"""Carries a trained run's knowledge to a new task, `raymtl adapt --transfer`; starts no Ray."""

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from raymtl import config, run_folder
from raymtl.adaptation.examples import drawn_episode, read_examples
from raymtl.adaptation.transfer import (
    Examples,
    Network,
    Result,
    TargetTransfer,
    Teacher,
    Transfer,
    Trunk,
    load_transfer,
    named,
)
from raymtl.adaptation.transfer.base import as_prediction
from raymtl.adaptation.transfer.descent import Look
from raymtl.adaptation.transfer.network import Predict, headed
from raymtl.config import Experiment
from raymtl.data.episodes import on_device
from raymtl.data.tables.row_origins import RowOrigins
from raymtl.encoders.norm import WITH_BATCH_STATISTICS
from raymtl.evaluation.evaluate import load_model, scores_of
from raymtl.evaluation.predictions import said_of, write_predictions
from raymtl.notes import Note
from raymtl.reporting.terminal import Row, View
from raymtl.step.algorithm import Algorithm
from raymtl.storage import formats
from raymtl.types import Batch, Params, Task, UserError

SHOWN_AFTER_S = 2.0


class NewData(NamedTuple):
    """The new task's examples, and what is to be predicted; its labels are known for a held-out
    episode.
    """

    domain: str
    folder: str
    task: str
    labelled: Examples
    inputs: Tensor
    targets: Tensor
    """[N] of these, nan where there is none."""
    asked: RowOrigins
    classes: tuple[str, ...] = ()
    """By their numbers, where the file or the run names them."""
    notes: Sequence[Note] = ()

    @property
    def known(self) -> Tensor:
        """Which of the inputs have a label, [N]."""
        return ~self.targets.double().isnan()


def transfer_run(
    run: Path,
    transfer: Transfer,
    support: Path | None,
    episode: int,
    name: str | None,
    view: View,
    query: Path | None = None,
    moved: Mapping[str, str] | None = None,
    task: str | None = None,
) -> dict[str, Any]:
    """Carries RUN/best to a new task and writes RUN/adapted/NAME; returns what was written and
    scored.

    The task is a Parquet file (docs/transfer.md), or one task of a held-out test episode of the
    source. The folder appears whole: `transfer.yaml`, `config.yaml`, `model.safetensors`,
    `predictions.parquet`, `curve.parquet` and `scores.json`.
    """
    if name is not None and (Path(name).name != name or name in (".", "..")):
        raise UserError(f"--name: expected a plain name for a folder, got '{name}'.")
    experiment, algorithm, params = load_model(run / "best")
    if moved:
        experiment = experiment.model_copy(update={"data": experiment.data.moved(moved)})
    for section, encoder in (
        ("encoder", experiment.encoder),
        ("student", getattr(transfer, "student", None)),
    ):
        if encoder is not None and encoder.norm in WITH_BATCH_STATISTICS:
            raise UserError(
                f"{section}.norm: expected one that predicts of each example alone, such as group, "
                f"got {encoder.norm}, whose statistics are those of a support set. Choose another "
                "norm."
            )
    data = _read(experiment, algorithm, transfer, support, episode, query, task)
    transfer = transfer.model_copy(
        update={"task": transfer.task.model_copy(update={"name": data.task})}
    )
    reads = transfer.reads or algorithm.tasks[0].name
    if reads not in experiment.data.task_names:
        raise UserError(
            f"reads: expected one of the trained tasks {list(experiment.data.task_names)}, got "
            f"'{reads}'."
        )
    _load(algorithm, params)
    teacher = Teacher(Trunk(algorithm.model, reads), tuple(experiment.data.input_shape), None)
    _check_plain(algorithm, params, teacher, reads, data.labelled.inputs[:2])
    same = next(
        (t for t in algorithm.tasks if t.name == data.task and _kind_of(t) == transfer.task.kind),
        None,
    )
    if same is not None:
        transfer, teacher = _with_the_task(algorithm, params, transfer, teacher, same)
    result = transfer.fit(teacher, data.labelled, _shown(data, transfer, view))
    before: Tensor | None = None
    after = torch.zeros(0, result.task.out_features)
    if len(data.inputs):
        with torch.no_grad():
            after = result.network(data.inputs)
            if teacher.predict and same and _num_outputs(same) == result.task.out_features:
                before = as_prediction(result.task, teacher.predict(data.inputs))
    scores = _scores(result, data, before, after)
    said = said_of(
        experiment.data, result.task, data.targets, data.known, before, after, data.classes
    )

    def write(folder: Path) -> None:
        experiment.save(folder / "config.yaml")
        told = {"transfer": transfer.model_dump(mode="json"), "reads": reads}
        (folder / "transfer.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
        formats.save_params(folder / "model.safetensors", named(result.network, data.task))
        write_predictions(folder / "predictions.parquet", [said], data.asked)
        formats.write_rows(folder / "curve.parquet", result.course.rows)
        formats.write_json(folder / "scores.json", scores)

    folder = run_folder.publish_folder(run / "adapted", name or data.folder, write)
    return {
        "folder": str(folder),
        "domain": data.domain,
        "support_examples": len(data.labelled.targets),
        "predicted_examples": len(data.inputs),
        "notes": [note.model_dump() for note in data.notes],
        **scores,
    }


def load_network(folder: Path) -> tuple[Network, Task]:
    """The network that `raymtl adapt --transfer` wrote, and its task. Raises UserError for what is
    damaged.
    """
    experiment = config.load(folder / "config.yaml")
    try:
        told = yaml.safe_load((folder / "transfer.yaml").read_text(encoding="utf8"))
        transfer = load_transfer(told["transfer"])
        reads = str(told["reads"])
    except (OSError, yaml.YAMLError, ValidationError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder}: expected what `raymtl adapt --transfer` wrote, got another ({reason})."
        ) from None
    about = formats.read_json(folder / "scores.json")["task"]
    new = transfer.task.model_copy(update={"num_classes": about["num_classes"]})
    if new.kind == "classification":
        task = new.build(torch.zeros(1))
    else:
        task = new.standardised(about["mean"], about["std"])
    shape = tuple(experiment.data.input_shape)
    teacher = Teacher(Trunk(experiment.build().model, reads), shape)
    if isinstance(transfer, TargetTransfer):
        body = transfer.network(teacher, task).body
    else:
        body = teacher.body
    network = headed(body, task, shape, 0)
    saved = formats.load_params(folder / "model.safetensors", named(network, task.name))
    with torch.no_grad():
        for key, value in named(network, task.name).items():
            value.copy_(saved[key])
    return network, task


def _read(
    experiment: Experiment,
    algorithm: Algorithm,
    transfer: Transfer,
    support: Path | None,
    episode: int,
    query: Path | None,
    task: str | None,
) -> NewData:
    """The user's file, or a task of a held-out episode: learned from its support set, scored by its
    query set.
    """
    if support is not None:
        of_classes = transfer.task.kind == "classification"
        new = read_examples(
            support, experiment, transfer.task.name, of_classes=of_classes, query=query, task=task
        )
        labelled = new.examples._replace(targets=_typed(new.examples, transfer))
        return NewData(
            str(support),
            support.stem,
            new.column,
            labelled,
            new.inputs,
            new.targets,
            new.asked,
            new.classes,
            new.notes,
        )
    wanted = transfer.task.name or algorithm.tasks[0].name
    if wanted not in experiment.data.task_names:
        raise UserError(
            "task.name: expected one of the tasks of an episode, "
            f"{list(experiment.data.task_names)}, got '{wanted}'. Give your own task by --support."
        )
    given = drawn_episode(experiment, episode)
    parts = on_device(given.episode, "cpu")
    (support_part, _), (query_part, there) = (_of_task(batch, wanted) for batch in parts)
    labelled = support_part._replace(targets=_typed(support_part, transfer))
    if not len(labelled.targets):
        raise UserError(
            f"--episode: expected one with labels of '{wanted}', got none in {given.domain}. Take "
            "another."
        )
    names = given.classes.get(wanted) or experiment.data.class_names(wanted)
    targets = _typed(query_part, transfer)
    return NewData(
        given.domain,
        given.folder,
        wanted,
        labelled,
        query_part.inputs,
        targets,
        given.asked.at(there),
        names,
    )


def _of_task(batch: Batch, task: str) -> tuple[Examples, np.ndarray]:
    """The examples of one task that have a label, and their numbers in the batch."""
    if task not in batch.targets:
        return Examples(torch.zeros(0), torch.zeros(0)), np.zeros(0, np.int64)
    if isinstance(batch.inputs, Tensor):
        inputs = batch.inputs
    else:
        inputs = batch.inputs[task]
    mask = batch.masks.get(task, torch.ones(len(inputs), dtype=torch.bool))
    return Examples(inputs[mask], batch.targets[task][mask]), np.flatnonzero(mask.numpy())


def _typed(examples: Examples, transfer: Transfer) -> Tensor:
    """Classes as whole numbers where they are; what is not is for the task's own check to refuse."""
    targets = examples.targets.double()
    if transfer.task.kind == "classification" and bool((targets == targets.round()).all()):
        return targets.long()
    return targets


def _load(algorithm: Algorithm, params: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in algorithm.model.named_parameters():
            value.copy_(params[f"model.{name}"])


@torch.no_grad()
def _check_plain(
    algorithm: Algorithm, params: Params, teacher: Teacher, reads: str, inputs: Tensor
) -> None:
    """Raises UserError where the model predicts through more than its own layers, which no plain
    network has.
    """
    if not algorithm.learner.supports_zero_shot or not len(inputs):
        return
    own, through = (
        algorithm.model.heads[reads](teacher.body(inputs)),
        algorithm.predict(params, inputs)[reads],
    )
    if not torch.allclose(own, through, rtol=1e-3, atol=1e-5):
        raise UserError(
            "learner.name: expected one whose model predicts by its own layers, got one that "
            "predicts through parameters of the learner too, which would stay behind. Transfer "
            "from a run with another learner."
        )


def _kind_of(task: Task) -> str:
    """Of a new task that is the same: yes or no is one of two classes."""
    if task.kind.has_class_targets:
        return "classification"
    return task.kind.name


def _num_outputs(task: Task) -> int:
    if task.kind.has_class_targets:
        return task.num_classes
    return task.out_features


def _with_the_task(
    algorithm: Algorithm, params: Params, transfer: Transfer, teacher: Teacher, task: Task
) -> tuple[Transfer, Teacher]:
    """Where the trained model has the task: as many classes as it, unless told, and its
    predictions.
    """
    if _kind_of(task) == "classification" and transfer.task.num_classes is None:
        new = transfer.task.model_copy(update={"num_classes": _num_outputs(task)})
        transfer = transfer.model_copy(update={"task": new})

    def predict(inputs: Tensor, fitted: Params = params) -> Tensor:
        predicted = algorithm.predict(fitted, inputs)[task.name]
        if task.kind.has_class_targets:
            return task.kind.class_logits(predicted)
        return task.decode(predicted.double())

    def adapt(examples: Examples) -> Predict:
        none = torch.zeros(len(examples.targets), dtype=torch.bool)
        targets = {t.name: torch.zeros_like(examples.targets) for t in algorithm.tasks} | {
            task.name: examples.targets
        }
        masks = {t.name: none for t in algorithm.tasks if t.name != task.name}
        with torch.no_grad():
            return partial(
                predict, fitted=algorithm.adapt(params, Batch(examples.inputs, targets, masks))
            )

    return transfer, teacher._replace(
        predict=predict if algorithm.learner.supports_zero_shot else None, adapt=adapt
    )


def _shown(data: NewData, transfer: Transfer, view: View) -> Look:
    """Shows the steps of what takes longer than a moment."""
    started = time.monotonic()

    def look(row: Mapping[str, float | None]) -> None:
        if time.monotonic() - started > SHOWN_AFTER_S:
            step, steps = int(row["step"] or 0), transfer.optimiser.steps
            if step == steps:
                state = "complete"
            else:
                state = "running"
            view.show(data.folder, Row(step, steps, state, f"loss {row['loss']:.4f}", ""))

    return look


def _scores(result: Result, data: NewData, before: Tensor | None, after: Tensor) -> dict[str, Any]:
    """What is known of the task, the step that was taken, and the metrics of what was held out and
    of the query set.
    """
    task, held_out = result.task, result.held_out
    about: dict[str, Any] = {"name": task.name, "kind": task.kind.name, "num_classes": None}
    if task.kind.has_class_logits:
        about["num_classes"] = task.out_features
        about["classes"] = list(data.classes)
    else:
        zero, one = (
            float(task.decode(torch.tensor([[x]], dtype=torch.float64))) for x in (0.0, 1.0)
        )
        about |= {"mean": zero, "std": one - zero}
    with torch.no_grad():
        if len(held_out.targets):
            validation = scores_of(task, result.network(held_out.inputs), held_out.targets)
        else:
            validation = None
    test = None
    known = data.known
    if known.any():
        targets = _as_learned(data.targets[known], task)
        test = {
            "before": None if before is None else scores_of(task, before[known], targets),
            "after": scores_of(task, after[known], targets),
        }
    counts = {"trained_on": len(result.trained_on.targets), "held_out": len(held_out.targets)}
    scores: dict[str, Any] = _without_nan(
        {
            "task": about,
            "step": result.course.step,
            **counts,
            "validation": validation,
            "test": test,
        }
    )
    return scores


def _without_nan(tree: Any) -> Any:
    """None in place of what is no finite number, which JSON does not have."""
    if isinstance(tree, Mapping):
        return {key: _without_nan(value) for key, value in tree.items()}
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree


def _as_learned(targets: Tensor, task: Task) -> Tensor:
    if task.kind.has_class_logits:
        return targets.long()
    return targets
