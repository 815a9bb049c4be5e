"""What every source of episodes offers: arrays to be shared, and episodes drawn from them by
generators.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from raymtl.data.counts import usual
from raymtl.data.draws import Draws
from raymtl.data.source_messages import every_episode_is_new, has_no_rows, made_when_drawn
from raymtl.encoders.front import Slot, expanded_shape
from raymtl.storage.notes import ARRAY, Note, unpack
from raymtl.types import Batch, Episode, Spec, Task, UserError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Arrays = Mapping[str, np.ndarray]


class Population(NamedTuple):
    """What the examples of a split were sampled from, by which their scores have intervals."""

    name: str
    """Of a member: row, patient, class, domain."""
    size: int | None
    """How many the split has; None where every episode is a new one."""
    whole: bool = False
    """Whether an episode takes all its examples from the same members, such as classes."""


Members = Mapping[str, np.ndarray]
"""Population -> which of its members N examples are of, [N] or [N, k]; -1 where they are of none.
"""


class HeldOut(NamedTuple):
    """Examples of a split that fit into one batch: `rows` [N], each once, and their members."""

    rows: np.ndarray
    members: Members
    batch: Callable[[np.ndarray], Batch]
    """Some of the rows -> the examples with their labels."""


class Source(Spec, ABC):
    """Where episodes come from. Classes, domains and examples of the splits are disjoint."""

    section: ClassVar[str] = "data"
    input_array: ClassVar[str | None] = None
    """The key of `load` whose rows are the inputs of examples; None where these are made when an
    episode is drawn.
    """
    builders: Literal["auto"] | NonNegativeInt = "auto"
    """How many processes of Ray Data build the episodes of training, on any machine; 0: the
    training workers build their own. `auto` begins with 0, and takes processors that are free where
    the workers wait for episodes more than 5 % of the time.
    """
    lanes: PositiveInt = 1
    """Into how many groups the episodes of a step are divided where files are streamed: each lane
    draws from a window of blocks of its own, and a worker reads those of its own episodes alone.
    """

    @property
    def is_resolved(self) -> bool:
        """Whether everything is known that the files of this source decide: its tasks, the shape of
        its inputs.
        """
        return True

    def resolve(self) -> Self:
        """The same source with what its files hold. It reads them, unless that is known.

        Raises UserError for files that cannot be learned from.
        """
        return self

    @property
    def is_image(self) -> bool:
        """Whether inputs are pictures, uint8 from 0 to 255; if not, they are any finite numbers,
        float32.
        """
        return True

    @property
    @abstractmethod
    def task_names(self) -> tuple[str, ...]:
        """The tasks that every episode holds, in their order."""

    @abstractmethod
    def select_tasks(self, names: tuple[str, ...]) -> Self:
        """The same source with some of its tasks alone, as a single-task baseline needs it."""

    @abstractmethod
    def as_supervised(self) -> Self:
        """The same number of labelled examples an episode, all in the query set, for a learner that
        does not adapt.
        """

    @property
    def numbers_classes_anew(self) -> bool:
        """Whether only the support set of an episode says which class has which number."""
        return getattr(self, "episodes", None) == "classes"

    def without_support(self, queries: int | None = None) -> Self:
        """The same examples for a learner that reads no support set: none is drawn.

        With `queries` so many examples of each task are an episode. Raises UserError where the
        source cannot draw them so; without `queries` it is then drawn as it is.
        """
        if queries is None:
            return self
        raise has_no_rows(self)

    @abstractmethod
    def make_tasks(self) -> tuple[Task, ...]:
        """The tasks with their heads, losses and metrics."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the leading axis of examples."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The numbers of an input that the model's front expands, in their order."""
        return ()

    @property
    def encoder_shape(self) -> tuple[int, ...]:
        """Shape of one input as the encoders read it, behind the front."""
        return expanded_shape(self.input_shape, self.slots)

    def class_names(self, task: str) -> tuple[str, ...]:
        """What the classes, labels or components of a task are called, in their order; none without
        names.
        """
        return ()

    @abstractmethod
    def load(self) -> dict[str, np.ndarray]:
        """Everything that episodes are built from, read once and shared between processes."""

    @abstractmethod
    def sizes(self, arrays: Arrays) -> Mapping[str, int]:
        """How many labelled examples of each task meta-training can draw from, in the order of
        `task_names`.
        """

    def expected_labels(self, arrays: Arrays) -> Mapping[str, float]:
        """The mean number of labels of a task in a query set for training; none where unknown."""
        return {}

    def input_arrays(self) -> tuple[str, ...]:
        """Keys of `load` in whose place a frozen encoder puts features, which episodes then take.

        Raises UserError where episodes change inputs, or make them.
        """
        if self.input_array is None or getattr(self, "augment", None):
            raise made_when_drawn(self)
        return (self.input_array,)

    def moved(self, places: Mapping[str, str]) -> Self:
        """The same data in other places, each by its key below `data`. Raises UserError for a key
        that says none.
        """
        if "folder" not in type(self).model_fields or set(places) != {"path"}:
            raise UserError(
                "--data: expected a run on files or on a folder, got one on "
                f"{getattr(self, 'name', 'another source')} and the key {', '.join(places)}. Leave "
                "it away."
            )
        return self.model_copy(update={"folder": places["path"]})

    def notes(self, arrays: Arrays) -> tuple[Note, ...]:
        """What was decided for the user while the data were found and loaded."""
        notes: tuple[Note, ...] = ()
        if ARRAY in arrays:
            notes = unpack(arrays[ARRAY])
        if arrays and type(self).populations is Source.populations:
            notes += (every_episode_is_new(type(self).__name__),)
        return notes

    @property
    def is_streamed(self) -> bool:
        """Whether episodes for training are drawn from a window of what is larger than memory."""
        return False

    def window(self, arrays: Arrays, split: Split, seed: int, step: int, lane: int = 0) -> Arrays:
        """What the episodes of a lane are drawn from at a step: all of it, other than of a source
        that is streamed.
        """
        return arrays

    @property
    def about_episodes(self) -> str:
        """What an episode is, in a few words that go on after `an episode is`."""
        return f"what data.name: {getattr(self, 'name', '?')} draws"

    def populations(self, arrays: Arrays, split: Split) -> tuple[Population, ...]:
        """What the examples of a split were sampled from.

        As it stands, every episode is a new one, which is true of computed episodes alone. A source
        that loads data overrides it; `notes` names one that does not.
        """
        return (Population("episode", None),)

    def query_members(self, arrays: Arrays, split: Split, draws: Draws) -> Mapping[str, Members]:
        """Task -> whose the query examples are in the one episode that `draw_episodes` draws with
        the same generator.

        Empty where every episode is a new one. Splits for evaluation alone.
        """
        return {}

    def every_example(self, arrays: Arrays, split: Split) -> tuple[HeldOut, ...]:
        """Every example of a split for evaluation, once; none where they are made by chance."""
        return ()

    @abstractmethod
    def draw_episodes(self, arrays: Arrays, split: Split, draws: Draws) -> Iterable["Bucket"]:
        """The episodes of these generators on the CPU, those that are alike in a stack.

        Takes all chances from `draws`, and an episode's from its own row of them alone.
        """


class Bucket(NamedTuple):
    """Episodes that are alike in their tasks and their numbers of examples."""

    episodes: Episode
    """A stack [E, ...]."""
    indices: np.ndarray
    """[E]: which episodes of the meta-batch they are."""
    domains: Callable[[], Sequence[str]]
    """Gives the names of their domains, E of them; training does not ask for them."""


def same_domain(name: str, num_episodes: int) -> Callable[[], Sequence[str]]:
    """The domains of episodes that all have this one."""
    return lambda: [name] * num_episodes


class DrawnSource(Source):
    """A source whose episodes have `shots` support and `queries` query examples."""

    if TYPE_CHECKING:
        shots: int | tuple[int, int]
        queries: int

    @property
    def _most_queries(self) -> int | None:
        """The largest query set beside a support set of one; None without a limit."""
        return None

    def as_supervised(self) -> Self:
        # A support set of one is drawn all the same, for an episode has both sets; where an episode
        # takes every example, that one is missed.
        queries = self.queries + usual(self.shots)
        if self._most_queries is not None:
            queries = min(queries, self._most_queries)
        return self.model_copy(update={"shots": 1, "queries": queries})

    def without_support(self, queries: int | None = None) -> Self:
        return self.model_copy(update={"shots": 0, "queries": queries or self.queries})


class ChosenTasks(DrawnSource):
    """A source whose `tasks` are chosen from those that it knows."""

    if TYPE_CHECKING:
        tasks: tuple[str, ...]

    @property
    def task_names(self) -> tuple[str, ...]:
        return self.tasks

    def select_tasks(self, names: tuple[str, ...]) -> Self:
        return self.model_copy(update={"tasks": names})


class SingleTask(DrawnSource):
    """A source with one task."""

    task: ClassVar[str]

    @property
    def task_names(self) -> tuple[str, ...]:
        return (self.task,)

    def select_tasks(self, names: tuple[str, ...]) -> Self:
        return self
