"""A trained model as its parts, and its outputs for inputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from raymtl import config
from raymtl.adaptation.examples import ClassNames
from raymtl.config import Experiment
from raymtl.data.episodes import on_device
from raymtl.evaluation.thresholds import with_kept_thresholds
from raymtl.features.network import FrozenNetwork, load_network, read_by
from raymtl.step.algorithm import Algorithm
from raymtl.storage import formats
from raymtl.types import Batch, Params, UserError

Inputs = Tensor | Mapping[str, Tensor]
"""Of all tasks [N, ...], or of each of them."""


class Trained(NamedTuple):
    """What a model consists of."""

    experiment: Experiment
    algorithm: Algorithm
    params: Params
    class_names: ClassNames = {}
    """Of the tasks whose classes a support set named."""
    network: FrozenNetwork | None = None
    """What computes the features that the model reads, with `encoder.frozen`."""

    @property
    def _like(self) -> Tensor:
        return next(value for name, value in self.params.items() if name.startswith("model."))

    def outputs(self, inputs: Inputs) -> dict[str, Tensor]:
        """The outputs of each task, [N, out_features, ...], of a model that predicts."""
        return self.algorithm.predict(self.params, self.beside(Batch(inputs, {}, {})).inputs)

    def check_ready(self, what: str, advice: str) -> None:
        """Raises UserError, which begins with `what` was asked for and ends with the advice, for a
        model that first has to read a support set.
        """
        algorithm = self.algorithm
        untouched = set(self.params) <= set(algorithm.init_params(self._like.device))
        learner = algorithm.learner
        if untouched and (not learner.supports_zero_shot or algorithm.normalises_by_support):
            raise UserError(
                f"{what}: expected a model that knows a support set, got one with learner.name: "
                f"{getattr(learner, 'name', 'of your own')} that has read none. {advice}"
            )

    def beside(self, batch: Batch) -> Batch:
        """The batch where the model is, and its inputs in the model's precision."""
        dtype = self._like.dtype
        batch = read_by(self.network, on_device(batch, self._like.device))
        if isinstance(batch.inputs, Tensor):
            return batch._replace(inputs=batch.inputs.to(dtype))
        return batch._replace(inputs={name: own.to(dtype) for name, own in batch.inputs.items()})

    def on(self, device: str) -> "Trained":
        """The same on a device. Its model moves, too."""
        network = self.network
        if network is not None:
            network = network.to(device)
        self.algorithm.model.to(device)
        self.algorithm.weighting.to(device)
        params = {name: value.to(device) for name, value in self.params.items()}
        return self._replace(params=params, network=network)


def load_trained(path: Path) -> Trained:
    """The best model of a run folder, or that of a model folder such as `RUN/baselines/joint` or
    `RUN/adapted/NAME`.

    Raises UserError where there is none, or what is there is damaged.
    """
    folder = path
    if (folder / "best").is_dir():
        folder = folder / "best"
    if (folder / "transfer.yaml").exists():
        raise UserError(
            f"{folder}: expected a model of the run's own tasks, got one that was transferred to a "
            "new task. Load it by raymtl.adaptation.transferred.load_network."
        )
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder}: expected a run folder or a model folder, got no such folder. Give one that "
            "raymtl wrote."
        )
    experiment = config.load(folder / "config.yaml")
    algorithm = experiment.build(pretrained=False)
    weights = folder / "model.safetensors"
    read = formats.load_params(weights)
    expected = {**algorithm.init_params(), **algorithm.constants()}
    known = {name: value for name, value in read.items() if name in expected}
    trained = algorithm.take(formats.as_expected(weights, known, expected))
    left = {name: value for name, value in read.items() if name not in expected}
    network = load_network(experiment, folder)
    algorithm = with_kept_thresholds(algorithm, folder)
    return Trained(experiment, algorithm, {**trained, **left}, network=network)


@torch.no_grad()
def outputs_in_chunks(trained: Trained, inputs: Tensor, size: int) -> dict[str, Tensor]:
    """The outputs for many inputs, `size` of them in one pass, on the CPU."""
    chunks = [trained.outputs(chunk) for chunk in inputs.split(size)]
    tasks = [task.name for task in trained.algorithm.tasks]
    return {name: torch.cat([chunk[name] for chunk in chunks]).cpu() for name in tasks}
