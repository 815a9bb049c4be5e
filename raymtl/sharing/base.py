"""What every sharing architecture offers to the step, the inner loop and the report."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from raymtl.encoders import Encoder
from raymtl.types import Params, Spec, Task

Output = Literal["predictions", "features", "auxiliary"]


class SharingArchitecture(nn.Module, ABC):
    """Maps inputs to one prediction per task, through features that tasks share in some way.

    Subclasses build their parts in `__init__` and compute `features`. What a part is to the tasks
    is told by `shared`.
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
        self.heads = nn.ModuleDict({task.name: task.head(shapes[task.name]) for task in tasks})

    @property
    @abstractmethod
    def shared(self) -> frozenset[str]:
        """Names of the parameters that the losses of several tasks depend on."""

    @abstractmethod
    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        """[N, ...] -> what the head reads, flattened [N, F], for each of `tasks`, and no more than
        they need.
        """

    def features_of_own(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The same where every task brings its own inputs [N_t, ...]: each passes through the
        architecture with them.

        Override it where tasks can be taken together.
        """
        return {name: self.features(own, (name,))[name] for name, own in inputs.items()}

    def parts(self) -> Iterator[nn.Module]:
        """Every module that takes part in a prediction."""
        yield from self.modules()

    def auxiliary(self, inputs: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Named scalars that depend on the inputs of one batch and join the outer objective, a mean
        over episodes.
        """
        return {}

    def penalty(self, params: Params) -> Tensor:
        """A term of the outer objective that depends on the parameters alone; `params` are named as
        in this module.
        """
        return next(iter(params.values())).new_zeros(())

    def forward(
        self, inputs: Tensor | Mapping[str, Tensor], *, output: Output = "predictions"
    ) -> dict[str, Tensor]:
        """One prediction per task; or the features that the heads would read; or the auxiliary
        terms.

        `inputs` is one tensor that all tasks share, or one per task: those alone are then
        predicted.
        """
        if output == "auxiliary":
            outputs = dict(self.auxiliary(inputs))
        else:
            if isinstance(inputs, Tensor):
                outputs = dict(self.features(inputs, self.task_names))
            else:
                outputs = dict(self.features_of_own(inputs))
            if output == "predictions":
                outputs = {name: self.heads[name](features) for name, features in outputs.items()}
        # Losses and distances are computed in the parameters' precision, whatever the layers ran
        # in.
        dtype = next(self.parameters()).dtype
        return {name: value.to(dtype) for name, value in outputs.items()}

    def _names(self, *parts: str) -> frozenset[str]:
        """The parameters whose names begin with one of these dotted parts; none where there is one
        task alone.
        """
        if len(self.task_names) == 1:
            return frozenset()
        prefixes = tuple(f"{part}." for part in parts)
        names = [name for name, _ in self.named_parameters()]
        return frozenset(name for name in names if f"{name}.".startswith(prefixes))


class SharingSpecBase(Spec, ABC):
    """Hyperparameters of an architecture; `build` makes it."""

    helps: ClassVar[str]
    """When one would choose the method, half a sentence for docs/methods.md."""

    def check(self, tasks: Sequence[Task], encoder: Encoder) -> tuple[str, str] | None:
        """What cannot be with these tasks and this encoder: the key below `sharing.` and a
        sentence; None if nothing.

        The sentence goes on after the key: what was expected, what was got, what to do. `encoder`
        may be on the meta device: its shapes count. Members that have more to check go on with
        this.
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
        """The shape of the encoder's features that the head of the task reads, maybe several times
        over.
        """
        return encoder.shapes[-1]

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
