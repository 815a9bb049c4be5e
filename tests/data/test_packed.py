"""Episodes as bytes: what is read is what was written, in place."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_flatten

from raymtl.data.episodes import build_episodes
from raymtl.data.packed import ALIGNMENT, DTYPES, pack_episodes, unpack_episodes
from raymtl.types import Batch, Episode
from tests.conftest import experiment
from tests.data.test_mixed_episodes import SEVERAL


def assert_equal(stacks: Sequence[Episode], others: Sequence[Episode]) -> None:
    leaves, structure = tree_flatten(tuple(stacks))
    other_leaves, other_structure = tree_flatten(tuple(others))
    assert structure == other_structure
    for leaf, other in zip(leaves, other_leaves, strict=True):
        assert leaf.dtype == other.dtype
        assert torch.equal(leaf, other)


@pytest.mark.parametrize(
    "data",
    [
        {"name": "digits"},
        {"name": "sinusoid"},
        SEVERAL,
        {**SEVERAL, "episodes": "together"},
    ],
)
def test_unpacked_episodes_equal_the_packed_ones(data: dict[str, Any]) -> None:
    """One stack or several, one tensor of inputs or one for each task, with masks and without."""
    source = experiment(data=data).data
    stacks, _ = build_episodes(
        source, source.load(), seed=0, split="train", step=1, indices=range(9)
    )
    assert_equal(unpack_episodes(pack_episodes(stacks)), stacks)


def test_every_type_of_number_is_kept() -> None:
    targets = {name: torch.ones(2, 3, 1).to(dtype) for name, dtype in DTYPES.items()}
    targets["none"] = torch.zeros(2, 0, 4)
    targets["nan"] = torch.tensor(float("nan")).expand(2, 3)
    crooked = torch.arange(24.0).reshape(4, 3, 2).permute(2, 1, 0)
    batch = Batch(crooked, targets, {"int64": torch.tensor([[True, False, True]] * 2)})
    (stack,) = unpack_episodes(pack_episodes([Episode(batch, batch)]))
    assert stack.query.targets["nan"].isnan().all()
    plain = {name: target for name, target in targets.items() if name != "nan"}
    kept = {name: target for name, target in stack.query.targets.items() if name != "nan"}
    expected = Episode(batch._replace(targets=plain), batch._replace(targets=plain))
    read = Episode(*(own._replace(targets=kept) for own in stack))
    assert_equal([read], [expected])


def test_unpacking_copies_nothing() -> None:
    batch = Batch(torch.ones(1, 5), {"y": torch.ones(1, 5, dtype=torch.float64)}, {})
    packed = pack_episodes([Episode(batch, batch)])
    (stack,) = unpack_episodes(packed)
    start, end = packed.ctypes.data, packed.ctypes.data + len(packed)
    for leaf in tree_flatten(stack)[0]:
        assert start <= leaf.data_ptr() < end
        assert (leaf.data_ptr() - start) % ALIGNMENT == 0


def test_bytes_depend_on_the_episodes_alone() -> None:
    source = experiment().data
    arrays = source.load()
    first, again = (
        build_episodes(source, arrays, seed=0, split="train", step=3, indices=[1, 2])[0]
        for _ in range(2)
    )
    np.testing.assert_array_equal(pack_episodes(first), pack_episodes(again))
