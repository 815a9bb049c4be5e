"""The ids that Ray Data deals out, without Ray running."""

import pytest

from raymtl.distributed.step_shards import MOST_BLOCKS, id_blocks


@pytest.mark.parametrize(
    ("steps", "workers"), [(1, 1), (300, 2), (65, 3), (3001, 64), (20_000, 512)]
)
def test_blocks_hold_every_shard_once(steps: int, workers: int) -> None:
    """They are not many."""
    blocks = [block.to_pydict() for block in id_blocks(steps, workers)]
    assert len(blocks) <= MOST_BLOCKS + workers
    assert all(len(set(block["share"])) == 1 for block in blocks)
    # Dealt out in turn, each worker has one share of the same steps at any time.
    for turn in range(0, len(blocks), workers):
        together = blocks[turn : turn + workers]
        assert [block["share"][0] for block in together] == list(range(workers))
        assert all(block["step"] == together[0]["step"] for block in together)
    assert [step for block in blocks[::workers] for step in block["step"]] == list(range(steps))
