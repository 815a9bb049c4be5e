"""Predicts rows by actors of Ray Data on all machines, on GPUs where there are any."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import ray.data
import torch
from torch import Tensor

from raymtl.adaptation.examples import ClassNames
from raymtl.data.tables.faults import Faults
from raymtl.distributed.carried import Carried, carry
from raymtl.evaluation.thresholds import Thresholds, decided_by, kept_thresholds
from raymtl.features.network import FrozenNetwork
from raymtl.prediction.new_rows import RowsToPredict
from raymtl.prediction.parts import Job, Part, PartEntry, predict_parts
from raymtl.prediction.trained import Trained
from raymtl.storage import strict_json
from raymtl.types import UserError


class _Shipment(NamedTuple):
    """A job on its way to a process of Ray's."""

    experiment: Carried
    values: Mapping[str, Tensor]
    """The parameters and constants of the model."""
    thresholds: Thresholds
    class_names: ClassNames
    network: FrozenNetwork | None
    rows: RowsToPredict
    output: str

    @classmethod
    def of(cls, job: Job) -> "_Shipment":
        """The job as what can be sent."""
        trained = job.trained
        values = {**trained.params, **trained.algorithm.constants()}
        return cls(
            carry(trained.experiment),
            {name: value.detach().cpu() for name, value in values.items()},
            kept_thresholds(trained.algorithm.tasks),
            trained.class_names,
            trained.network,
            job.rows,
            job.output,
        )

    def unpack(self, device: str) -> Job:
        """The job, with its model on the device. Raises UserError."""
        experiment = self.experiment.unpack()
        algorithm = experiment.build(pretrained=False)
        # A copy, since what Ray has in its store cannot be written.
        params = algorithm.take({name: value.clone() for name, value in self.values.items()})
        algorithm = decided_by(algorithm, self.thresholds)
        trained = Trained(experiment, algorithm, params, self.class_names, self.network)
        return Job(trained.on(device), self.rows, self.output)


def on_ray(job: Job, parts: Sequence[Part]) -> Iterator[PartEntry]:
    """Makes each file as a call of an actor. Ray must have been started.

    Raises UserError for rows that cannot be predicted.
    """
    if not parts:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    resources, actors = _resources(job.trained.experiment.train.device)
    most = max(1, min(actors, len(parts)))
    # From items, which need no process to be read by.
    items = [dict(zip(Part._fields, part, strict=True)) for part in parts]
    made = ray.data.from_items(items, override_num_blocks=len(parts)).map_batches(
        _Predictor,
        fn_constructor_args=([ray.put(_Shipment.of(job))],),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, initial_size=most, max_size=most),
        **resources,
    )
    for row in made.iter_rows():
        if row["error"]:
            raise UserError(row["error"])
        faults = Faults(*map(tuple, json.loads(row["faults"])))
        yield PartEntry(int(row["number"]), int(row["rows"]), faults)


def _resources(device: str) -> tuple[dict[str, Any], int]:
    """What an actor gets, as `train.device` says, and how many actors there can be."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus and device != "cpu":
        return {"num_gpus": 1}, gpus
    return {"num_cpus": 1}, int(ray.cluster_resources().get("CPU", 1))


class _Predictor:
    """An actor with the model, on the GPU that it was given if any."""

    def __init__(self, shipment: "Sequence[ray.ObjectRef[_Shipment]]") -> None:
        device = "cpu"
        if ray.get_gpu_ids():
            device = "cuda"
        torch.set_num_threads(1)
        self.job: Job | None = None
        self.error = ""
        try:
            self.job = ray.get(shipment[0]).unpack(device)
        except UserError as mistake:
            self.error = str(mistake)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What is known of the file of this part, or the sentence on a user's mistake."""
        part = Part(*(int(batch[name][0]) for name in Part._fields))
        entry = PartEntry(part.number, 0, Faults())
        error = self.error
        try:
            if self.job is not None:
                (entry,) = predict_parts(self.job, [part])
        except UserError as mistake:
            error = str(mistake)
        return {
            "number": np.array([entry.number]),
            "rows": np.array([entry.rows]),
            "faults": np.array([strict_json.dumps(entry.faults)], dtype=object),
            "error": np.array([error], dtype=object),
        }
