"""Data prepared by Ray Data."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from raymtl.data.prepared.manifest import ShardEntry
from raymtl.data.prepared.plan import Job, ShardPlan
from raymtl.data.prepared.prepare import prepare
from raymtl.distributed.prepare_shards import on_ray
from raymtl.types import UserError
from tests.data.test_prepared import SMALL, files_in, table
from tests.distributed.local import local_ray


def test_ray_makes_the_shards_of_a_plain_loop(tmp_path: Path) -> None:
    """To the bit; and a mistake in a task is the user's, in one sentence."""
    source = table(tmp_path)

    def without_files(job: Job, shards: Sequence[ShardPlan]) -> Iterator[ShardEntry]:
        (tmp_path / "own.parquet").unlink()
        return on_ray(job, shards)

    prepare(source, str(tmp_path / "loop"), shard_mb=SMALL)
    with local_ray(num_cpus=2, include_dashboard=False):
        prepare(source, str(tmp_path / "ray"), shard_mb=SMALL, driver=on_ray)
        with pytest.raises(UserError, match=r"own\.parquet"):
            prepare(source, str(tmp_path / "gone"), shard_mb=SMALL, driver=without_files)
    assert files_in(tmp_path / "ray") == files_in(tmp_path / "loop")
