"""Attention over tasks (scaled dot products as of Vaswani et al., 2017, arXiv:1706.03762).

g_t(x) = sum_s a_ts(x) f_s(x), a_t = softmax_s <q_t, k_s> / sqrt(d), q_t = Q f_t(x) + u_t, k_s = K
f_s(x) + v_s.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
from raymtl.types import Task

SPREAD = 0.1  # of the embeddings at first: small, so that all towers count about alike


class Attention(SharingArchitecture):
    """Each task has a tower, and attends to the towers of all tasks depending on the input.

    Query and key come from the features of the task's tower, through maps that all share, plus an
    embedding of the task; values are the features themselves. Each of `heads` heads of `dim`
    numbers mixes one slice of the features, of nearly equal width. Zero queries give every task the
    mean of the towers. All towers see the inputs, also for the prediction of one task. Where tasks
    have separate inputs, each tower sees those of all tasks in one pass.
    """

    def __init__(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], heads: int, dim: int
    ) -> None:
        width = encoders[0].out_features
        super().__init__(tasks, encoders[0].shapes[-1])
        self.num_heads, self.dim = heads, dim
        self.towers = nn.ModuleDict(dict(zip(self.task_names, encoders, strict=True)))
        self.query_map = nn.Linear(width, heads * dim, bias=False)
        self.key_map = nn.Linear(width, heads * dim, bias=False)
        self.queries = self._embeddings()
        self.keys = self._embeddings()

    def _embeddings(self) -> nn.ParameterDict:
        """A random embedding [heads, dim] for each task."""
        shape = self.num_heads, self.dim
        values = {name: SPREAD * torch.randn(shape) for name in self.task_names}
        return nn.ParameterDict({name: nn.Parameter(value) for name, value in values.items()})

    @property
    def shared(self) -> frozenset[str]:
        return self._names("towers", "query_map", "key_map", "keys")

    def attention(self, inputs: Tensor) -> Tensor:
        """The attention of each task, [N, heads, K, K]; each row of the last axis sums to 1."""
        values = self._values(inputs)
        keys = self._keys(values)
        return torch.stack([self._attention(name, values, keys) for name in self.task_names], 2)

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        values = self._values(inputs)
        keys = self._keys(values)
        return {name: self._mixture(name, values, keys) for name in tasks}

    def features_by_task(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        pieces = self._values(torch.cat(list(inputs.values()))).split(
            [len(own) for own in inputs.values()]
        )
        return {
            name: self._mixture(name, values, self._keys(values))
            for name, values in zip(inputs, pieces, strict=True)
        }

    def _values(self, inputs: Tensor) -> Tensor:
        """[N, ...] -> [N, K, out_features]."""
        return torch.stack([tower(inputs) for tower in self.towers.values()], 1)

    def _keys(self, values: Tensor) -> Tensor:
        """[N, K, out_features] -> [N, K, heads, dim]."""
        keys = self.key_map(values).unflatten(-1, (self.num_heads, self.dim))
        task_keys: Tensor = keys + torch.stack([self.keys[name] for name in self.task_names])
        return task_keys

    # One task at a time: in one product over all of them the graph of each task would reach the
    # queries of the others.

    def _attention(self, task: str, values: Tensor, keys: Tensor) -> Tensor:
        """The attention of the task, [N, heads, K]."""
        own = self.query_map(values[:, self.task_names.index(task)])
        queries = own.unflatten(-1, (self.num_heads, self.dim)) + self.queries[task]
        return (torch.einsum("nhd,nshd->nhs", queries, keys) / math.sqrt(self.dim)).softmax(-1)

    def _mixture(self, task: str, values: Tensor, keys: Tensor) -> Tensor:
        """The features that the head of the task reads, [N, out_features]."""
        weights = self._attention(task, values, keys).unbind(1)
        pieces = values.tensor_split(self.num_heads, -1)
        return torch.cat(
            [
                torch.einsum("ns,nsf->nf", w, piece)
                for w, piece in zip(weights, pieces, strict=True)
            ],
            1,
        )


class AttentionSpec(SharingSpecBase):
    """Every task has a tower, and reads the features of all towers by attention over the tasks.

    `heads` is the number of slices of the features, each with its own attention. `dim` is the
    length of the queries and keys of one head.

    Example: `sharing: {name: attention, heads: 2, dim: 8}`
    """

    name: Literal["attention"] = "attention"
    helps: ClassVar[str] = "which tasks help depends on the input, and is to be seen"
    heads: PositiveInt = 4
    dim: PositiveInt = 16

    def check(self, tasks: Sequence[Task], encoder: Encoder) -> tuple[str, str] | None:
        if self.heads > encoder.out_features:
            return (
                "heads",
                f"expected at most the {encoder.out_features} features of the encoder, got "
                f"{self.heads}. Lower sharing.heads or widen the encoder.",
            )
        return super().check(tasks, encoder)

    def num_encoders(self, num_tasks: int) -> int:
        return num_tasks

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> Attention:
        return Attention(tasks, encoders, self.heads, self.dim)
