"""Sums over the workers of a training, gathers from them, and the time that both take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist


class Communication:
    """How long this process communicates with other workers, including the wait for the slowest.

    On a GPU it is the time of the GPU between two events around each operation.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        """When the operation that runs now began; None where none runs."""
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def timed(self, tensor: Tensor) -> Iterator[None]:
        """Counts the time of one operation, whose tensors are on one device."""
        self.since = start = time.perf_counter()
        try:
            if tensor.is_cuda:
                events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                events[0].record()
                yield
                events[1].record()
                self._events.append(events)
            else:
                yield
                self._seconds += time.perf_counter() - start
        finally:
            self.since = None

    def taken(self) -> float:
        """The seconds of communication since the last call. Waits until the GPU has finished it."""
        for start, end in self._events:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000
        seconds, self._seconds = self._seconds, 0.0
        self._events.clear()
        return seconds


COMMUNICATION = Communication()
"""The communication of this process."""


class Workers(NamedTuple):
    """This process among the workers that share a meta-batch."""

    rank: int = 0
    size: int = 1

    def sum(self, local: Tensor) -> Tensor:
        """The sum over all workers. Every worker gets it."""
        if self.size > 1:
            local = local.contiguous().clone()
            with COMMUNICATION.timed(local):
                dist.all_reduce(local)
        return local

    def sum_to_shard(self, rows: Tensor) -> Tensor:
        """Sums [K, P] over all workers and gives each its shard of the columns.

        A shard is [K, ceil(P / size)]; the last one is padded with zeros.
        """
        if self.size == 1:
            return rows
        width = -(-rows.shape[1] // self.size)
        padded = rows.new_zeros(self.size, len(rows), width)
        for piece, columns in zip(padded, rows.split(width, dim=1), strict=False):
            piece[:, : columns.shape[1]] = columns
        shard = rows.new_empty(len(rows), width)
        with COMMUNICATION.timed(shard):
            dist.reduce_scatter_tensor(shard, padded.flatten(0, 1))
        return shard

    def gather(self, shard: Tensor, length: int) -> Tensor:
        """The shards [..., ceil(P / size)] of all workers joined, without the padding: [..., P]."""
        if self.size == 1:
            return shard
        gathered = shard.new_empty(self.size, *shard.shape)
        if shard.ndim > 1:
            buffer = gathered.flatten(0, -2)
        else:
            buffer = gathered.flatten()
        with COMMUNICATION.timed(shard):
            dist.all_gather_into_tensor(buffer, shard.contiguous())
        return gathered.movedim(0, -2).flatten(-2)[..., :length]

    def join(self, rows: Tensor) -> Tensor:
        """The rows [E, ...] of all workers, in their order. E may differ between workers."""
        if self.size == 1:
            return rows
        numbers = rows.new_zeros(self.size, dtype=torch.int64)
        numbers[self.rank] = len(rows)
        ends = self.sum(numbers).cumsum(0).tolist()
        joined = rows.new_zeros(ends[-1], *rows.shape[1:])
        joined[ends[self.rank] - len(rows) : ends[self.rank]] = rows
        return self.sum(joined)

    def share(self, count: int) -> range:
        """The shard of `count` items that belongs to this worker.

        Shards are contiguous, and their sizes differ by one at most.
        """
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)
