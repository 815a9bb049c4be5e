"""A share of a meta-batch as one run of bytes, which travels between processes and is not parsed.

8 bytes                   the length of the header, little endian
header                    JSON: the stacks, each tensor as {"dtype", "shape", "start"}
numbers of each tensor    at `start`, a multiple of 64, counted from the end of the header
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymtl.storage import strict_json
from raymtl.types import Batch, Episode

ALIGNMENT = 64
"""Bytes: what Arrow and vector instructions like."""
LENGTH_BYTES = 8
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.float32,
        torch.float64,
    )
}


class _Writer:
    """Finds the places of tensors, one after the other."""

    def __init__(self) -> None:
        self.size = 0
        self.tensors: list[tuple[int, Tensor]] = []

    def place(self, tensor: Tensor) -> dict[str, Any]:
        """What the header says of a tensor."""
        start = _aligned(self.size)
        self.tensors.append((start, tensor))
        self.size = start + tensor.numel() * tensor.element_size()
        dtype = str(tensor.dtype).removeprefix("torch.")
        return {"dtype": dtype, "shape": list(tensor.shape), "start": start}

    def place_all(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The same of each tensor, by its name."""
        return {name: self.place(tensor) for name, tensor in tensors.items()}

    def place_batch(self, batch: Batch) -> dict[str, Any]:
        """The same of each tensor of a batch."""
        header: dict[str, Any] = {}
        if isinstance(batch.inputs, Tensor):
            header["shared_inputs"] = self.place(batch.inputs)
        else:
            header["inputs"] = self.place_all(batch.inputs)
        header["targets"] = self.place_all(batch.targets)
        header["masks"] = self.place_all(batch.masks)
        return header


def pack_episodes(stacks: Sequence[Episode]) -> np.ndarray:
    """The stacks as bytes [N], uint8."""
    writer = _Writer()
    headers = [
        {"support": writer.place_batch(stack.support), "query": writer.place_batch(stack.query)}
        for stack in stacks
    ]
    text = strict_json.dumps(headers).encode()
    begin = _aligned(LENGTH_BYTES + len(text))
    packed = np.zeros(begin + writer.size, np.uint8)
    packed[:LENGTH_BYTES] = np.frombuffer(len(text).to_bytes(LENGTH_BYTES, "little"), np.uint8)
    packed[LENGTH_BYTES : LENGTH_BYTES + len(text)] = np.frombuffer(text, np.uint8)
    numbers = packed[begin:]
    for start, tensor in writer.tensors:
        plain = tensor.contiguous().numpy().reshape(-1).view(np.uint8)
        numbers[start : start + len(plain)] = plain
    return packed


def unpack_episodes(packed: np.ndarray) -> tuple[Episode, ...]:
    """The stacks of bytes that `pack_episodes` made; the tensors are views of these bytes."""
    length = int.from_bytes(packed[:LENGTH_BYTES].tobytes(), "little")
    headers = json.loads(packed[LENGTH_BYTES : LENGTH_BYTES + length].tobytes())
    numbers = torch.from_numpy(packed[_aligned(LENGTH_BYTES + length) :])
    return tuple(
        Episode(_batch(header["support"], numbers), _batch(header["query"], numbers))
        for header in headers
    )


def _aligned(place: int) -> int:
    """The next multiple of the alignment."""
    return -(-place // ALIGNMENT) * ALIGNMENT


def _batch(header: Mapping[str, Any], numbers: Tensor) -> Batch:
    inputs: Tensor | dict[str, Tensor]
    if "shared_inputs" in header:
        inputs = _tensor(header["shared_inputs"], numbers)
    else:
        inputs = _tensors(header["inputs"], numbers)
    return Batch(inputs, _tensors(header["targets"], numbers), _tensors(header["masks"], numbers))


def _tensors(headers: Mapping[str, Any], numbers: Tensor) -> dict[str, Tensor]:
    return {name: _tensor(header, numbers) for name, header in headers.items()}


def _tensor(header: Mapping[str, Any], numbers: Tensor) -> Tensor:
    dtype, shape, start = DTYPES[header["dtype"]], header["shape"], header["start"]
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    return numbers[start : start + num_bytes].view(dtype).reshape(shape)
