"""Transfers a trained run to a new task, `raymtl adapt --transfer`; starts no Ray."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from raymtl import run_folder
from raymtl.adaptation.new_data import NewData, TransferRequest, read_new_data
from raymtl.adaptation.request import AdaptationRequest
from raymtl.adaptation.transfer import Examples, Result, Teacher, Transfer, Trunk, named
from raymtl.adaptation.transfer.descent import Look
from raymtl.adaptation.transfer.network import Predict
from raymtl.config import Experiment
from raymtl.encoders import PretrainedSpec
from raymtl.encoders.norm import BatchStatistics
from raymtl.evaluation.evaluate import scores_of
from raymtl.evaluation.predictions import prediction_of, write_predictions
from raymtl.features.network import FrozenNetwork, load_network, read_shape
from raymtl.reporting.terminal import Row, View
from raymtl.step.algorithm import Algorithm
from raymtl.storage import formats
from raymtl.storage.strict_json import finite_or_none
from raymtl.types import Batch, Params, Task, UserError

SHOWN_AFTER_S = 2.0
"""Trainings that take longer show their steps."""


class _Prepared(NamedTuple):
    """What a transfer is fitted on."""

    experiment: Experiment
    data: NewData
    transfer: Transfer
    """With the task's name, and its number of classes where the trained model has the task."""
    teacher: Teacher
    reads: str
    """The trained task whose features the new head reads."""
    trained: Task | None
    """The task of the trained model that the new one is."""


class _Predicted(NamedTuple):
    """What is predicted of the inputs, before (where the trained model has the task) and after."""

    before: Tensor | None
    after: Tensor


def transfer_run(request: TransferRequest, view: View) -> dict[str, Any]:
    """Transfers RUN/best to a new task and writes RUN/adapted/NAME; returns what was written and
    scored.

    The task is a Parquet file (docs/transfer.md), or one task of a held-out test episode of the
    source. The folder appears at once: `transfer.yaml`, `config.yaml`, `model.safetensors`,
    `predictions.parquet`, `curve.parquet` and `scores.json`.
    """
    prepared = _prepare(request)
    data, transfer = prepared.data, prepared.transfer
    result = transfer.fit(prepared.teacher, data.labelled, _progress(data, transfer, view))
    predicted = _predict(prepared, result)
    scores = _score(prepared, result, predicted)
    folder = _write(request.adaptation, prepared, result, predicted, scores)
    return {
        "folder": str(folder),
        "domain": data.domain,
        "support_examples": len(data.labelled.targets),
        "predicted_examples": len(data.inputs),
        "notes": [note.model_dump() for note in data.notes],
        **scores,
    }


def _prepare(request: TransferRequest) -> _Prepared:
    """Reads the examples, and makes a teacher of the trained model."""
    experiment, algorithm, params = request.adaptation.load()
    _check_norms(experiment, request.transfer)
    data = read_new_data(request, experiment, algorithm)
    data = _embedded(data, load_network(experiment, request.adaptation.run))
    named_task = request.transfer.task.model_copy(update={"name": data.task})
    transfer = request.transfer.model_copy(update={"task": named_task})
    reads = transfer.reads or algorithm.tasks[0].name
    if reads not in experiment.data.task_names:
        raise UserError(
            f"reads: expected one of the trained tasks {list(experiment.data.task_names)}, got "
            f"'{reads}'."
        )
    with torch.no_grad():
        for name, value in algorithm.model.named_parameters():
            value.copy_(params[f"model.{name}"])
    teacher = Teacher(Trunk(algorithm.model, reads), read_shape(experiment), None)
    _check_plain(algorithm, params, teacher, reads, data.labelled.inputs[:2])
    kind = transfer.task.task_kind
    trained = None
    for task in algorithm.tasks:
        if task.name == data.task and kind.accepts(task):
            trained = task
            completed = kind.completed(transfer.task, task)
            transfer = transfer.model_copy(update={"task": completed})
            teacher = _teacher_of_task(algorithm, params, transfer, teacher, task)
    return _Prepared(experiment, data, transfer, teacher, reads, trained)


def _embedded(data: NewData, network: FrozenNetwork | None) -> NewData:
    """The examples with features in the place of pictures, if the network of the run is frozen."""
    if network is None:
        return data
    labelled = data.labelled._replace(inputs=network(data.labelled.inputs))
    return data._replace(labelled=labelled, inputs=network(data.inputs))


def _check_norms(experiment: Experiment, transfer: Transfer) -> None:
    """Raises UserError where a norm takes its statistics from a support set."""
    encoders = {"encoder": experiment.encoder, "student": getattr(transfer, "student", None)}
    for section, encoder in encoders.items():
        if encoder is None:
            continue
        try:
            with torch.device("meta"):
                modules = encoder.build(experiment.data.encoder_shape).modules()
        except UserError as error:
            raise UserError(f"{section}: {error}") from None
        if any(isinstance(module, BatchStatistics) for module in modules):
            key, instead = "norm", "group"
            if isinstance(encoder, PretrainedSpec):
                key, instead = "batch_norm", "frozen"
            raise UserError(
                f"{section}.{key}: expected one that predicts of each example alone, such as "
                f"{instead}, got {getattr(encoder, key)}, whose statistics are those of a support "
                "set. Choose another norm."
            )


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


def _teacher_of_task(
    algorithm: Algorithm, params: Params, transfer: Transfer, teacher: Teacher, task: Task
) -> Teacher:
    """The teacher with the predictions of its own task."""
    kind = transfer.task.task_kind

    def predict(inputs: Tensor, adapted: Params = params) -> Tensor:
        return kind.taught(task, algorithm.predict(adapted, inputs)[task.name])

    def adapt(examples: Examples) -> Predict:
        number = len(examples.targets)
        targets = {own.name: torch.zeros_like(examples.targets) for own in algorithm.tasks}
        masks = {own.name: torch.zeros(number, dtype=torch.bool) for own in algorithm.tasks}
        targets[task.name] = examples.targets
        del masks[task.name]
        with torch.no_grad():
            adapted = algorithm.adapt(params, Batch(examples.inputs, targets, masks))
        return partial(predict, adapted=adapted)

    if algorithm.learner.supports_zero_shot:
        return teacher._replace(predict=predict, adapt=adapt)
    return teacher._replace(adapt=adapt)


def _progress(data: NewData, transfer: Transfer, view: View) -> Look:
    """Shows the steps of what takes longer than a moment."""
    started = time.monotonic()
    steps = transfer.optimiser.steps

    def look(row: Mapping[str, float | None]) -> None:
        if time.monotonic() - started > SHOWN_AFTER_S:
            step = int(row["step"] or 0)
            state = "running"
            if step == steps:
                state = "complete"
            view.show(data.folder, Row(step, steps, state, f"loss {row['loss']:.4f}", ""))

    return look


@torch.no_grad()
def _predict(prepared: _Prepared, result: Result) -> _Predicted:
    """Before: what the trained model says, where it has the task with as many outputs."""
    inputs, trained = prepared.data.inputs, prepared.trained
    kind, teacher = prepared.transfer.task.task_kind, prepared.teacher
    if not len(inputs):
        return _Predicted(None, torch.zeros(0, result.task.out_features))
    after = result.network(inputs)
    if teacher.predict is None or trained is None:
        return _Predicted(None, after)
    if kind.num_outputs(trained) != result.task.out_features:
        return _Predicted(None, after)
    return _Predicted(kind.as_prediction(result.task, teacher.predict(inputs)), after)


def _score(prepared: _Prepared, result: Result, predicted: _Predicted) -> dict[str, Any]:
    """What is known of the task, the step that was taken, and the metrics of what was held out and
    of the query set.
    """
    data, kind = prepared.data, prepared.transfer.task.task_kind
    task, held_out = result.task, result.held_out
    validation = None
    if len(held_out.targets):
        with torch.no_grad():
            validation = scores_of(task, result.network(held_out.inputs), held_out.targets)
    test = None
    known = data.known
    if known.any():
        targets = data.targets[known]
        if task.kind.has_integer_targets:
            targets = targets.long()
        before = None
        if predicted.before is not None:
            before = scores_of(task, predicted.before[known], targets)
        test = {"before": before, "after": scores_of(task, predicted.after[known], targets)}
    scores: dict[str, Any] = {
        "task": {
            "name": task.name,
            "kind": task.kind.name,
            **kind.describe(task, data.class_names),
        },
        "step": result.course.step,
        "steps": len(result.course.rows),
        "trained_on": len(result.trained_on.targets),
        "held_out": len(held_out.targets),
        "validation": validation,
        "test": test,
    }
    finite: dict[str, Any] = finite_or_none(scores)
    return finite


def _write(
    request: AdaptationRequest,
    prepared: _Prepared,
    result: Result,
    predicted: _Predicted,
    scores: Mapping[str, Any],
) -> Path:
    """Publishes the folder of the transferred model; returns where it is."""
    data = prepared.data
    prediction = prediction_of(
        prepared.experiment.data,
        result.task,
        data.targets,
        data.known,
        predicted.before,
        predicted.after,
    ).with_classes(data.class_names)

    def write(folder: Path) -> None:
        prepared.experiment.save(folder / "config.yaml")
        transferred = {
            "transfer": prepared.transfer.model_dump(mode="json"),
            "reads": prepared.reads,
        }
        (folder / "transfer.yaml").write_text(yaml.safe_dump(transferred, sort_keys=False))
        formats.save_params(folder / "model.safetensors", named(result.network, data.task))
        write_predictions(folder / "predictions.parquet", [prediction], data.origins)
        formats.write_rows(folder / "curve.parquet", result.course.rows)
        formats.write_json(folder / "scores.json", scores)

    return run_folder.publish_folder(request.run / "adapted", request.name or data.folder, write)
