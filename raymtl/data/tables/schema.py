"""What is asked of a user's files, and what was found in them: the roles of columns, the labels of
tasks.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_serializer,
    field_validator,
)

from raymtl.data.base import Split
from raymtl.data.tables.fitted_column import FittedColumn
from raymtl.data.tables.packed_findings import packed, packed_columns, unpacked
from raymtl.schema.readers import Written
from raymtl.storage.notes import Note
from raymtl.tasks.kinds import KindName, kind_named
from raymtl.tasks.thresholds import ThresholdMetric
from raymtl.types import ClassLoss, LabelStatistics, Spec, TaskKind

Format = Literal["parquet", "csv", "arff", "mat", "arrow", "webdataset", "pictures"]


def _task_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w -]*", name):
        close = re.sub(r"[^\w -]+", "_", name).strip("_ -") or "NAME"
        raise ValueError(
            f"expected a name of letters, digits, _, - and spaces, got {name!r}: write {close}: "
            f"{{column: {name!r}}}, or another name"
        )
    return name


TaskName = Annotated[Written, AfterValidator(_task_name)]
Label = bool | int | float | str
Decimal = Literal[".", ","]
Thousands = Literal[",", ".", " ", "'", "_"]
DateOrder = Literal["ymd", "dmy", "mdy"]


class SplitRule(Spec):
    """Which rows are for training, for validation, for testing.

    By `column`, which holds the names of the splits, or by the hash of the group, of the column
    `key` or of all inputs of the row: that does not depend on the order of the rows, and rows that
    are alike stay together. A split that is not named there takes its share out of the rows for
    training.
    """

    column: Written | None = None
    key: Written | None = None
    fractions: tuple[
        Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]
    ] = (
        0.7,
        0.15,
        0.15,
    )
    """Of train, val and test; what counts is their proportion."""
    seed: Annotated[int, Field(ge=0)] = 0


class TaskColumn(Spec):
    """The labels of a task: a column, of the table of all or of a file of its own."""

    column: Written | None = None
    """The name of the task, unless given."""
    columns: Annotated[tuple[Written, ...], Field(min_length=1)] | None = None
    """Several: the components of a vector, or labels that are each there or not.

    Of a table of boxes the six that hold picture, class, x1, y1, x2 and y2; of these names, unless
    given.
    """
    kind: KindName | None = None
    """Inferred, unless given."""
    classes: Annotated[tuple[Label, ...], Field(min_length=2)] | None = None
    """In the order of their numbers; those that are found, unless given."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """Between the labels that stand in one text; found, unless given."""
    loss: Literal["squared", "absolute", "huber"] | None = None
    """Of a regression; squared, unless given."""
    class_weights: Literal["balanced"] | Mapping[Label, PositiveFloat] | None = None
    """Of a classification or a binary task: by how much each class counts in the loss; `balanced`:
    all alike. Of a multi-label task: by how much the yes of each label counts; `balanced`: as much
    as all its noes.
    """
    pos_weight: Literal["balanced"] | PositiveFloat | Mapping[Label, PositiveFloat] | None = None
    """Of a binary or a multi-label task: by how much a yes counts beside a no, as in torch's loss;
    `balanced`: as much as all noes together. A mapping is of the labels of a multi-label task. It
    takes the place of class_weights.
    """
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of tasks with classes or labels: the share of every target that all classes have alike
    (arXiv:1512.00567).
    """
    focal: NonNegativeFloat = 0.0
    """Of the same: the gamma of the focal loss (arXiv:1708.02002), such as 2."""
    metric: str | None = None
    """The score of its kind that the task is chosen by, such as `f1`; the first one in
    docs/tasks.md, unless given.
    """
    threshold: ThresholdMetric | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of a binary or a multi-label task: the probability above which the answer is yes, or the
    score by which it is chosen on the validation split after the training. Unless given, `metric`
    is that score where it depends on a threshold; in all other cases it is 1/2.
    """
    path: str | None = None
    """A file of its own: joined to the table by data.key, or with rows of its own where there is no
    such key.

    Of boxes a folder of Pascal VOC's XML, JSON of COCO or a table; found by the names of pictures.
    Of maps a folder, or a pattern such as `masks/*_mask.png`: each is named as its picture is, or
    as `column` says.
    """
    stride: PositiveInt | None = None
    """Of a detection: pixels between the places that say what is there; 8 unless given."""
    values: Annotated[tuple[int, ...], Field(min_length=2)] | None = None
    """Of a segmentation: the numbers, or colours 0xRRGGBB, that stand for `classes`; 0, 1, 2 ...
    unless given.
    """
    ignore: int | tuple[int, ...] | None = None
    """Of a segmentation: the numbers that say nothing; found, unless given. Negative ones never do.
    """
    scale: PositiveFloat | None = None
    """Of a depth: what 1 in a map stands for, such as 0.001 where maps hold millimetres; 1 unless
    given.
    """

    @property
    def task_kind(self) -> TaskKind | None:
        """The kind that was given."""
        given = self.kind
        if given is None:
            return None
        return kind_named(given)

    @property
    def may_be_maps(self) -> bool:
        """Whether the labels are maps, or their kind was not given."""
        return self.task_kind is None or self.task_kind.is_map


class TextForm(Spec):
    """How the texts of a column are read: as numbers, dates, or texts."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_alias=True)

    value_type: Literal["text", "flag", "whole", "number", "date", "moment", "time"] = Field(
        alias="kind"
    )
    """A flag is true or false; a moment a date with a time; a time one without a date. Run folders
    call it `kind`.
    """
    decimal: Decimal = "."
    thousands: Thousands | None = None
    unit: str = ""
    """What stands beside every number, such as `%`, `kg` or a sign of a currency."""
    order: DateOrder | None = None
    """Of day, month and year; none where they are written as ISO 8601 says."""

    @property
    def is_date(self) -> bool:
        """Whether values are dates, with a time or without."""
        return self.value_type in ("date", "moment")


class Shades(Spec):
    """What is black and what is white in pictures of more than 8 bits, the same in all of them."""

    black: float
    white: float
    fractions: bool | None = None
    """Whether their values are floats; these and whole numbers alike where the range was given."""


class FittedTask(Spec):
    """What the labels of a task are; `asked` is what was given, from which it was inferred."""

    asked: TaskColumn
    kind: KindName
    inferred: bool
    """Whether the kind was."""
    classes: tuple[str, ...] = ()
    """By their numbers; of a multi-label task the labels."""
    forms: Mapping[str, TextForm] = {}
    """How the texts of its columns are read, where that is not as anybody would."""
    values: tuple[int, ...] = ()
    """What stands for the classes in a map."""
    ignored: tuple[int, ...] = ()
    """What says nothing in a map."""
    colours: bool = False
    """Whether both are colours, written 0xRRGGBB."""
    separator: str | None = None
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()
    """Of the components of a regression's target; of the depths of all pixels."""
    vector: bool = False
    class_weights: tuple[float, ...] = ()
    """Of the classes, or of the yes of each label, in the loss; none where all count alike."""
    labelled: float
    """Share of the rows for training that have a label."""

    @property
    def task_kind(self) -> TaskKind:
        """The kind."""
        return kind_named(self.kind)

    @property
    def statistics(self) -> LabelStatistics:
        """What the task is built from."""
        return LabelStatistics(
            len(self.classes),
            self.means,
            self.stds,
            self.vector,
            self.asked.loss,
            self.asked.stride,
            self.class_loss,
        )

    @property
    def class_loss(self) -> ClassLoss:
        """How the loss treats classes."""
        return ClassLoss(self.class_weights, self.asked.label_smoothing, self.asked.focal)


class Fitted(Spec):
    """What was found in the files, of the rows for training where it is a statistic. A run keeps
    it.
    """

    settings: str
    """A digest of what it was found by; another one finds it anew."""
    path: str | tuple[str, ...] | Mapping[str, str] = ""
    """Where; files that have moved since are encoded by what was found here."""
    format: Format
    columns: Annotated[tuple[FittedColumn, ...], Field(min_length=1)]
    left_out: Mapping[str, str] = {}
    """Columns that are no inputs, and why."""
    forms: Mapping[str, TextForm] = {}
    """How the texts of columns are read, where that is not as anybody would: as whole numbers,
    flags ...
    """
    hashed: tuple[str, ...] = ()
    """The columns whose hash splits the rows, where these are others than the inputs."""
    tasks: Mapping[str, FittedTask]
    notes: tuple[Note, ...] = ()
    """What was decided while the files were looked at."""
    split_by: str
    """In words."""
    split_column: str | None = None
    given_splits: tuple[Split, ...] | None = None
    """The splits that `split_column` names; in a stream, in the rows that were looked at. None
    where an earlier version found it.
    """
    input_shape: tuple[PositiveInt, ...]
    shades: Shades | None = None
    """None where no picture for training has more than 8 bits."""
    rows: PositiveInt
    pool: PositiveInt | None = None
    """How many blocks are in memory at a time, where the files are streamed."""

    @field_validator("columns", "left_out", "hashed", "notes", mode="before")
    @classmethod
    def _read(cls, findings: Any) -> Any:
        return unpacked(findings)

    @field_serializer("columns", when_used="json")
    def _write_columns(self, columns: Any) -> Any:
        return packed_columns(columns)

    @field_serializer("left_out", "hashed", "notes", when_used="json")
    def _write(self, findings: Any) -> Any:
        return packed(findings)


def label_text(value: object) -> str:
    """A class as it is written in YAML, in the form that `texts` gives to those in the files."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
