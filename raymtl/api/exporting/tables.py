"""Columns of a table inside the graph: scaled numbers, and categories as one-hot vectors.

numbers, vectors: (x - mean) / std in float64, with the mean for what is missing
categories: 1 at the place of the code, and at the last place for any other code
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raymtl.data import Files
from raymtl.data.tables.fitted_column import FittedColumn
from raymtl.types import UserError

UNKNOWN = -1
"""The code of a category that is missing or unknown."""
Described = tuple[str, torch.dtype, tuple[int, ...], dict[str, Any]]


class Columns(NamedTuple):
    """The columns of a table by their kinds, and where their numbers stand in a row."""

    numbers: Sequence[FittedColumn]
    vectors: Sequence[FittedColumn]
    categories: Sequence[FittedColumn]
    order: Sequence[int]
    """Of each number that the model reads: its place in numbers, vectors and categories."""
    impute: bool

    def described(self) -> Iterator[Described]:
        """Name, type, shape of one example and description of each input that there is."""
        missing = "nan, which becomes the mean of the rows for training"
        if not self.impute:
            missing = "not allowed"
        if self.numbers:
            names = [column.column for column in self.numbers]
            yield (
                "numbers",
                torch.float64,
                (len(names),),
                {"columns": names, "missing": missing},
            )
        if self.vectors:
            sizes = {column.column: column.size for column in self.vectors}
            yield (
                "vectors",
                torch.float64,
                (sum(sizes.values()),),
                {"columns": list(sizes), "sizes": list(sizes.values()), "missing": missing},
            )
        if self.categories:
            codes = {column.column: _codes(column) for column in self.categories}
            yield (
                "categories",
                torch.int64,
                (len(codes),),
                {"columns": list(codes), "codes": codes, "missing": UNKNOWN, "unknown": UNKNOWN},
            )

    def examples(self, number: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Rows by chance, with some missing values and unknown categories among them."""
        rows: dict[str, Tensor] = {}
        for name, columns in (("numbers", self.numbers), ("vectors", self.vectors)):
            if columns:
                means, stds = _statistics(columns)
                noise = torch.randn(number, len(means), generator=generator, dtype=torch.float64)
                if self.impute:
                    noise[0, 0] = torch.nan
                rows[name] = means + stds * noise
        if self.categories:
            codes = torch.rand(number, len(self.categories), generator=generator)
            sizes = torch.tensor([column.size for column in self.categories])
            rows["categories"] = (codes * sizes).long() + UNKNOWN
        return rows


def columns_of(files: Files) -> Columns:
    """The columns of a run's table. Raises UserError for a column of text."""
    starts: dict[str, list[int]] = {"number": [], "vector": [], "category": []}
    by_role: dict[str, list[FittedColumn]] = {role: [] for role in starts}
    place = 0
    for column in files.found.columns:
        if column.role not in starts:
            raise UserError(
                f"data.inputs: expected columns of numbers, categories or vectors, which a graph "
                f"of tensors can read, got the {column.role} '{column.column}'. Predict with "
                "`raymtl predict`, or leave the column away (data.exclude)."
            )
        by_role[column.role].append(column)
        starts[column.role] += range(place, place + column.size)
        place += column.size
    order = [0] * place
    for now, before in enumerate(number for role in starts for number in starts[role]):
        order[before] = now
    impute = files.missing_inputs == "mean"
    return Columns(by_role["number"], by_role["vector"], by_role["category"], order, impute)


def _codes(column: FittedColumn) -> dict[str, int]:
    return {text: code for code, text in enumerate(column.categories)}


def _statistics(columns: Sequence[FittedColumn]) -> tuple[Tensor, Tensor]:
    """Mean and spread of each number, [D] float64."""
    means = [column.mean for column in columns for _ in range(column.size)]
    stds = [column.std for column in columns for _ in range(column.size)]
    return torch.tensor(means, dtype=torch.float64), torch.tensor(stds, dtype=torch.float64)


class TableInputs(nn.Module):
    """The inputs of a table, in the order of `Columns.described` -> rows [N, D] float32."""

    def __init__(self, columns: Columns) -> None:
        super().__init__()
        scaled = [each for each in (columns.numbers, columns.vectors) if each]
        self.scales = nn.ModuleList(Scale(each) for each in scaled)
        self.one_hot: nn.Module | None = None
        if columns.categories:
            self.one_hot = OneHot(columns.categories)
        self.order: Tensor
        self.register_buffer("order", torch.tensor(columns.order))

    def forward(self, *inputs: Tensor) -> Tensor:
        pieces = [
            scale(values)
            for scale, values in zip(self.scales, inputs[: len(self.scales)], strict=True)
        ]
        if self.one_hot is not None:
            pieces.append(self.one_hot(inputs[-1]))
        return torch.cat(pieces, 1).index_select(1, self.order)


class Scale(nn.Module):
    """Numbers [N, D] float64 -> [N, D] float32 of mean 0 and spread 1."""

    def __init__(self, columns: Sequence[FittedColumn]) -> None:
        super().__init__()
        means, stds = _statistics(columns)
        self.mean: Tensor
        self.factor: Tensor
        self.register_buffer("mean", means)
        self.register_buffer("factor", 1 / stds)

    def forward(self, values: Tensor) -> Tensor:
        known = torch.where(values.isnan(), self.mean, values)
        return ((known - self.mean) * self.factor).to(torch.float32)


class OneHot(nn.Module):
    """Codes [N, C] int64 -> [N, sum of the sizes]; a code of no category is the last place."""

    def __init__(self, columns: Sequence[FittedColumn]) -> None:
        super().__init__()
        sizes = torch.tensor([column.size for column in columns])
        self.last: Tensor
        self.owner: Tensor
        self.code: Tensor
        self.register_buffer("last", sizes - 1)
        self.register_buffer("owner", torch.arange(len(columns)).repeat_interleave(sizes))
        codes = [torch.arange(column.size) for column in columns]
        self.register_buffer("code", torch.cat(codes))

    def forward(self, codes: Tensor) -> Tensor:
        unknown = (codes < 0) | (codes > self.last)
        known = torch.where(unknown, self.last, codes)
        return (known.index_select(1, self.owner) == self.code).to(torch.float32)
