"""A trained model as an ordinary module of torch."""

import copy
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from raymtl.adaptation.adapt import check_finite
from raymtl.adaptation.examples import read_support
from raymtl.api.checks import Place
from raymtl.prediction.new_rows import predict_table
from raymtl.prediction.trained import Trained, load_trained
from raymtl.types import Batch, Task

Inputs = Tensor | np.ndarray | Mapping[str, Tensor]
"""Of all tasks [N, ...], or of each of them."""


class Model(nn.Module):
    """A trained model: `adapt` learns a task from a few examples, `predict` says what people read.

    `model(inputs)` gives the outputs of each task, [N, out_features, ...], such as logits. The
    module owns its tensors: it can be moved, saved by its `state_dict` and trained on by any loop.
    Only one thread may use a model at a time.

    Example:
        >>> model = raymtl.load_model("runs/quickstart")
        >>> adapted = model.adapt(raymtl.Batch(pictures, {"left": left}, masks={}))
        >>> adapted.predict(new_pictures)["left"]  # [N], the digits
    """

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.experiment = trained.experiment
        self.class_names = trained.class_names
        self.network = copy.deepcopy(trained.network)
        self.model = copy.deepcopy(trained.algorithm.model)
        self.weighting = copy.deepcopy(trained.algorithm.weighting)
        self._algorithm = trained.algorithm._replace(model=self.model, weighting=self.weighting)
        self._names = tuple(trained.params)
        self.others = nn.ParameterDict()
        """What is no parameter of the two: the learner's own, and what a support set left."""
        own = self._own()
        with torch.no_grad():
            for number, (name, value) in enumerate(trained.params.items()):
                if name in own:
                    own[name].copy_(value)
                    continue
                learned = value.is_floating_point() and not name.startswith("support.")
                copied = value.detach().clone()
                self.others[_key(number)] = nn.Parameter(copied, requires_grad=learned)

    def _own(self) -> dict[str, nn.Parameter]:
        return {
            **{f"model.{name}": value for name, value in self.model.named_parameters()},
            **{f"weighting.{name}": value for name, value in self.weighting.named_parameters()},
        }

    @property
    def params(self) -> dict[str, Tensor]:
        """All tensors that are learned, by the names that `model.safetensors` has."""
        own = self._own()
        return {
            name: own[name] if name in own else self.others[_key(number)]
            for number, name in enumerate(self._names)
        }

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """The outputs of each task, [N, out_features, ...].

        Raises UserError for a model that first has to read a support set.
        """
        self.check_ready("predict", "Call adapt first.")
        return self.parts.outputs(self._tensors(inputs))

    def outputs(self, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same of inputs as the algorithm reads them, without the check."""
        return self._algorithm.predict(self.params, inputs)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that it predicts."""
        return self._algorithm.tasks

    @property
    def transductive(self) -> bool:
        """Whether the prediction for an example depends on those beside it."""
        return self._algorithm.transductive

    def check_ready(self, what: str, advice: str) -> None:
        """Raises UserError, which begins with `what` was asked for and ends with the advice, for a
        model that first has to read a support set.
        """
        self.parts.check_ready(what, advice)

    @property
    def parts(self) -> Trained:
        """The model as its parts, which share its tensors."""
        return Trained(
            self.experiment, self._algorithm, self.params, self.class_names, self.network
        )

    @staticmethod
    def _tensors(inputs: Inputs) -> Tensor | Mapping[str, Tensor]:
        if isinstance(inputs, np.ndarray):
            return torch.from_numpy(inputs)
        return inputs

    def adapt(self, support: Batch | Place, *, steps: int | None = None) -> "Model":
        """A model that has learned from the support set; this one stays as it is.

        Args:
            support: labelled examples as tensors, or a file or folder in the form of those that
                the run was trained on, whose labelled rows are read (docs/adapt.md).
            steps: the number of inner steps; the learner's own by default.

        Raises:
            UserError: for examples that do not fit the run.
        """
        class_names = self.class_names
        if isinstance(support, Batch):
            where = "support"
        else:
            where = str(support)
            examples = read_support(Path(support), self.experiment, self._algorithm)
            support, class_names = examples.episode.support, examples.class_names
        with torch.no_grad():
            adapted = self._algorithm.adapt(self.params, self.parts.beside(support), steps)
        check_finite(where, adapted)
        trained = Trained(self.experiment, self._algorithm, adapted, class_names, self.network)
        return Model(trained)

    @overload
    def predict(self, inputs: Inputs) -> dict[str, Tensor]: ...

    @overload
    def predict(self, inputs: Place) -> pa.Table: ...

    @torch.no_grad()
    def predict(self, inputs: Inputs | Place) -> dict[str, Tensor] | pa.Table:
        """What the model says of each example: the class, or the value in the label's own unit.

        Args:
            inputs: [N, ...], as the run's source gives them (pictures in bytes, or from 0 to 1);
                or a file or folder in the form of those that the run was trained on.

        Returns:
            Of tensors the predictions of each task, [N, ...]; of a file a table with the columns
            of predictions.parquet (docs/adapt.md#predictionsparquet).
        """
        if isinstance(inputs, str | PathLike):
            return predict_table(self.parts, str(inputs))
        outputs = self(inputs)
        tasks = [task for task in self._algorithm.tasks if task.name in outputs]
        return {task.name: task.decode(outputs[task.name]) for task in tasks}


def _key(number: int) -> str:
    return f"tensor_{number}"


def load_model(path: Place) -> Model:
    """The best model of a run folder, or that of a model folder such as `RUN/baselines/joint` or
    `RUN/adapted/NAME`.

    Raises UserError where there is none, or what is there is damaged.

    Example:
        >>> raymtl.load_model("runs/quickstart").predict(inputs)
    """
    return Model(load_trained(Path(path)))
