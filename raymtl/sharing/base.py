"""The interface of all sharing architectures, and of the specs that build them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from raymtl.encoders import Encoder, lr_scales
from raymtl.sharing.heads import predictions_of
from raymtl.storage.notes import Note
from raymtl.types import Params, Spec, Task

Output = Literal["predictions", "features", "auxiliary", "of_features"]


class SharingArchitecture(nn.Module, ABC):
    """Maps inputs to one prediction per task, through features that tasks share in some way.

    Subclasses build their modules in `__init__`, compute `features`, and name in `shared` the
    parameters that several tasks use.
    """

    def __init__(
        self, tasks: Sequence[Task], shape: tuple[int, ...] | Mapping[str, tuple[int, ...]]
    ) -> None:
        """`shape` is that of one example's features, by task or the same for all."""
        super().__init__()
        self.task_names = tuple(task.name for task in tasks)
        self.out_features = {task.name: task.out_features for task in tasks}
        self.encoded = {task.name: task.encode_target for task in tasks}
        self.lr_scale: Mapping[
            str, float
        ] = {}  # of the outer learning rate, by the first part of a parameter's name
        if isinstance(shape, Mapping):
            shapes = shape
        else:
            shapes = dict.fromkeys(self.task_names, shape)
        self.front: nn.Module | None = None
        """What expands the slots of inputs before anything else reads them (`encoders.front`)."""
        self.heads = nn.ModuleDict({task.name: task.head(shapes[task.name]) for task in tasks})

    @property
    @abstractmethod
    def shared(self) -> frozenset[str]:
        """Names of the parameters that the losses of several tasks depend on."""

    @property
    def shared_with_front(self) -> frozenset[str]:
        """The same, and the parameters of the front, which all losses depend on."""
        return self.shared | self._names("front")

    @abstractmethod
    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        """The flattened features [N, F] that the head of each of `tasks` reads, from [N, ...].

        Nothing is computed that these tasks do not need.
        """

    def features_by_task(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The features of each task from separate inputs [N_t, ...].

        The default passes the inputs of each task through the architecture one by one. Override it
        where several tasks can pass together.
        """
        return {name: self.features(own, (name,))[name] for name, own in inputs.items()}

    def expanded(self, inputs: Tensor) -> Tensor:
        """Inputs [N, ...] as the encoders read them."""
        if self.front is None:
            return inputs
        read: Tensor = self.front(inputs)
        return read

    def learning_rate_scales(self) -> Mapping[str, float]:
        """The factor of the outer learning rate of each parameter, by its name."""
        return {
            name: scale * self.lr_scale.get(name.partition(".")[0], 1.0)
            for name, scale in lr_scales(self).items()
        }

    def prediction_modules(self) -> Iterator[nn.Module]:
        """Every module that a prediction uses."""
        yield from self.modules()

    def auxiliary(self, inputs: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Named scalar terms of the outer objective that depend on the inputs of one batch.

        The objective takes their mean over episodes.
        """
        return {}

    def penalty(self, params: Params) -> Tensor:
        """A term of the outer objective that depends on the parameters alone.

        `params` are named as in this module.
        """
        return next(iter(params.values())).new_zeros(())

    def forward(
        self, inputs: Tensor | Mapping[str, Tensor], *, output: Output = "predictions"
    ) -> dict[str, Tensor]:
        """The predictions of the tasks, the features that the heads read, or the auxiliary terms.

        `inputs` is one tensor that all tasks share, or one for each of some tasks, of which alone
        there are then predictions. With "of_features" they are the features of each task, and what
        is returned are the predictions.
        """
        if output == "of_features":
            assert not isinstance(inputs, Tensor)
            outputs = predictions_of(dict(self.heads.items()), inputs)
        else:
            outputs = dict(self._outputs(inputs, output))
        # Losses and distances are computed in the parameters' precision, whatever the layers ran
        # in.
        dtype = next(self.parameters()).dtype
        return {name: value.to(dtype) for name, value in outputs.items()}

    def _outputs(
        self, inputs: Tensor | Mapping[str, Tensor], output: Output
    ) -> Mapping[str, Tensor]:
        """The same of inputs that have not been expanded."""
        if isinstance(inputs, Tensor):
            inputs = self.expanded(inputs)
        else:
            inputs = {name: self.expanded(own) for name, own in inputs.items()}
        if output == "auxiliary":
            return self.auxiliary(inputs)
        if isinstance(inputs, Tensor):
            features = self.features(inputs, self.task_names)
        else:
            features = self.features_by_task(inputs)
        if output == "features":
            return features
        return predictions_of(dict(self.heads.items()), features)

    def _names(self, *modules: str) -> frozenset[str]:
        """The parameters below these dotted names; none for a single task, which shares nothing."""
        if len(self.task_names) == 1:
            return frozenset()
        prefixes = tuple(f"{module}." for module in modules)
        names = [name for name, _ in self.named_parameters()]
        return frozenset(name for name in names if f"{name}.".startswith(prefixes))


class SharingSpecBase(Spec, ABC):
    """Hyperparameters of an architecture; `build` makes it."""

    section: ClassVar[str] = "sharing"

    helps: ClassVar[str]
    """When one would choose the method, half a sentence for docs/methods.md."""

    needs_stages: ClassVar[bool] = False
    """Whether the architecture does something between the encoder's stages."""

    has_batch_terms: ClassVar[bool] = False
    """Whether the objective has a term of a batch that is not the mean over its examples."""

    def check(self, tasks: Sequence[Task], encoder: Encoder) -> tuple[str, str] | None:
        """Why these hyperparameters do not fit the tasks and the encoder; None where they do.

        The first string is the key below `sharing.`. The second continues the sentence after it:
        what was expected, what was got, what to do. `encoder` may be on the meta device, since only
        its shapes are read. Overrides end with a call of this method.
        """
        for task in tasks:
            shape = self.feature_shape(task.name, encoder)
            if task.is_dense and (len(shape) != 3 or math.prod(shape[1:]) == 1):
                return (
                    "name",
                    "expected features that are maps [channels, height, width] for the "
                    f"{task.kind} of data.tasks: '{task.name}', got {list(shape)} from the "
                    "encoder. Choose encoder.name: conv or conv4, or resnet18 with encoder.pooled: "
                    "false.",
                )
        return None

    def feature_shape(self, task: str, encoder: Encoder) -> tuple[int, ...]:
        """The shape of the encoder's features that the head of the task reads.

        Some architectures concatenate several features of this shape.
        """
        return encoder.shapes[-1]

    def notes(self, encoder: Encoder) -> tuple[Note, ...]:
        """What these hyperparameters leave out or decide for the user, of an encoder's layers.

        `encoder` may be on the meta device.
        """
        return ()

    @abstractmethod
    def num_encoders(self, num_tasks: int) -> int:
        """How many copies of the encoder the architecture consists of."""

    @abstractmethod
    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> SharingArchitecture:
        """The architecture over `num_encoders` encoders of equal shape.

        With `isolate_task_graphs`, tasks with separate inputs pass through shared stages one by
        one, so that no task's gradient passes through the examples of another. Architectures
        without a stage that is applied to the joined inputs ignore it.
        """


def several(number: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of `number` maps or vectors of this shape, concatenated along the channels."""
    return (number * shape[0], *shape[1:])
