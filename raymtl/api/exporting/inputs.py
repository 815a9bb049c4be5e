"""What the graph of an exported model reads, and what it does with it before the model.

A row of a table is `numbers`, `vectors` and `categories`, each with all of its columns of this
kind. Pictures are bytes. Other sources give the numbers that the model reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raymtl.api.exporting.tables import Columns, TableInputs, columns_of
from raymtl.config import Experiment
from raymtl.data import Files, Several, Source, files_of
from raymtl.data.tables.settings import FilesConfig
from raymtl.features.network import FrozenNetwork
from raymtl.types import UserError

NUMBERS = "inputs"
PICTURES = "pictures"


class GraphInput(NamedTuple):
    """One tensor that the graph reads."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of one example."""
    about: Mapping[str, Any]
    """What its numbers are, for people and programs."""


class GraphInputs(NamedTuple):
    """All tensors that the graph reads."""

    each: Sequence[GraphInput]
    module: nn.Module
    """Takes them in their order, and gives what the model reads, [N, ...]."""
    outside: str
    """What is done before the graph, in a sentence; empty where nothing is."""
    columns: Columns | None = None
    """Of a table."""

    def examples(self, number: int, seed: int = 0) -> dict[str, Tensor]:
        """So many examples by chance, such as the graph may read."""
        generator = torch.Generator().manual_seed(seed)
        if self.columns is not None:
            return self.columns.examples(number, generator)
        (only,) = self.each
        shape = (number, *only.shape)
        if only.dtype == torch.uint8:
            return {only.name: torch.randint(256, shape, generator=generator, dtype=torch.uint8)}
        return {only.name: torch.randn(shape, generator=generator, dtype=only.dtype)}


def inputs_of(experiment: Experiment, network: FrozenNetwork | None) -> GraphInputs:
    """What the graph of a run reads. Raises UserError for inputs that no graph can read."""
    source = experiment.data
    if source.is_image:
        return _pictures(source, network)
    files = files_of(source)
    if files is not None:
        return _table(files)
    if isinstance(source, Several):
        _refuse_several_tables(source)
    what = {"says": f"the numbers that data.name: {getattr(source, 'name', 'your own')} gives"}
    only = GraphInput(NUMBERS, torch.float32, tuple(source.input_shape), what)
    return GraphInputs((only,), nn.Identity(), "")


def _refuse_several_tables(source: Several) -> None:
    tables = [name for name, part in source.parts.items() if files_of(part) is not None]
    if tables:
        raise UserError(
            f"data.parts: expected one table, whose columns a graph can have inside, got "
            f"{', '.join(tables)} with columns of their own. Predict with `raymtl predict`, or "
            "train a run on one of them."
        )


def _table(files: Files) -> GraphInputs:
    columns = columns_of(files)
    each = [GraphInput(*one) for one in columns.described()]
    outside = (
        "Reading cells is outside the graph: a moment is its days since 1970, a time of the day or "
        "a span its seconds, true is 1 and false 0, and a category the code that model.json lists."
    )
    return GraphInputs(each, TableInputs(columns), outside, columns)


def _pictures(source: Source, network: FrozenNetwork | None) -> GraphInputs:
    shape = tuple(source.input_shape)
    channels, height, width = shape
    about: dict[str, Any] = {"says": "pictures [channels, height, width], 0 black and 255 white"}
    outside = ""
    files = files_of(source)
    if files is not None:
        about["resize"] = files.resize
        outside = (
            "Decoding and resizing are outside the graph: a picture is read as "
            f"{_colours(channels)} and {_resized(files)} to {height} x {width} pixels."
        )
        shades = files.found.shades
        if shades is not None:
            about["shades"] = {"black": shades.black, "white": shades.white}
            outside += (
                f" Of more than 8 bits, {shades.black:g} becomes 0 and {shades.white:g} becomes "
                "255 before that."
            )
    only = GraphInput(PICTURES, torch.uint8, shape, about)
    return GraphInputs((only,), PictureInputs(network), outside)


def _colours(channels: int) -> str:
    if channels == 1:
        return "greys"
    return "red, green and blue"


def _resized(files: FilesConfig) -> str:
    if files.resize == "crop":
        return "resized (bilinear with antialiasing) and cropped to its middle,"
    return "resized (bilinear with antialiasing)"


class PictureInputs(nn.Module):
    """Bytes [N, channels, height, width] -> numbers from 0 to 1, or the features of a network."""

    def __init__(self, network: FrozenNetwork | None) -> None:
        super().__init__()
        self.network: nn.Module | None = None
        self.shape: tuple[int, ...] = ()
        if network is not None:
            self.network, self.shape = network.network, network.feature_shape

    def forward(self, pictures: Tensor) -> Tensor:
        inputs = pictures.to(torch.float32) / 255
        if self.network is None:
            return inputs
        features: Tensor = self.network(inputs)
        return features.reshape(-1, *self.shape)
