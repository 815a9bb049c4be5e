"""The data of a transfer: a new task in a user's file, or a task of a held-out episode."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raymtl.adaptation.examples import draw_episode
from raymtl.adaptation.new_task import read_new_task
from raymtl.adaptation.request import AdaptationRequest
from raymtl.adaptation.transfer import Examples, Transfer
from raymtl.config import Experiment
from raymtl.data.episodes import on_device
from raymtl.data.tables.row_origins import RowOrigins
from raymtl.step.algorithm import Algorithm
from raymtl.storage.notes import Note
from raymtl.types import Batch, UserError


class TransferRequest(NamedTuple):
    """What is adapted to, and how."""

    adaptation: AdaptationRequest
    transfer: Transfer


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
    origins: RowOrigins
    """Of these."""
    class_names: tuple[str, ...] = ()
    """By their numbers, where the file or the run names them."""
    notes: Sequence[Note] = ()

    @property
    def known(self) -> Tensor:
        """Which of the inputs have a label, [N]."""
        return ~self.targets.double().isnan()


def read_new_data(
    request: TransferRequest, experiment: Experiment, algorithm: Algorithm
) -> NewData:
    """Reads the user's file, or draws the episode. Raises UserError for what does not fit."""
    if request.adaptation.support is not None:
        return _read_file(request, experiment, request.adaptation.support)
    return _read_episode(request, experiment, algorithm)


def _read_file(request: TransferRequest, experiment: Experiment, support: Path) -> NewData:
    """The labelled rows of the user's file, and those that are to be predicted."""
    new = request.transfer.task
    kind = new.task_kind
    of_classes = kind.kind.has_class_targets
    read = read_new_task(request.adaptation, experiment, new.name, of_classes=of_classes)
    labelled = read.examples._replace(targets=kind.typed(read.examples.targets.double()))
    return NewData(
        str(support),
        support.stem,
        read.column,
        labelled,
        read.inputs,
        read.targets,
        read.origins,
        read.class_names,
        read.notes,
    )


def _read_episode(
    request: TransferRequest, experiment: Experiment, algorithm: Algorithm
) -> NewData:
    """A task of a held-out episode: its support set, and its query set to be predicted."""
    kind = request.transfer.task.task_kind
    task = request.transfer.task.name or algorithm.tasks[0].name
    if task not in experiment.data.task_names:
        raise UserError(
            "task.name: expected one of the tasks of an episode, "
            f"{list(experiment.data.task_names)}, got '{task}'. Give your own task by --support."
        )
    drawn = draw_episode(experiment, request.adaptation.episode)
    episode = on_device(drawn.episode, "cpu")
    support, _ = _of_task(episode.support, task)
    query, query_rows = _of_task(episode.query, task)
    labelled = support._replace(targets=kind.typed(support.targets.double()))
    if not len(labelled.targets):
        raise UserError(
            f"--episode: expected one with labels of '{task}', got none in {drawn.domain}. Take "
            "another."
        )
    return NewData(
        drawn.domain,
        drawn.folder,
        task,
        labelled,
        query.inputs,
        kind.typed(query.targets.double()),
        drawn.query_origins.at(query_rows),
        drawn.class_names.get(task) or experiment.data.class_names(task),
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
