"""Data prepared by Ray Data."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest

from raymtl.data.prepared.manifest import ShardEntry
from raymtl.data.prepared.plan import Job, ShardPlan
from raymtl.data.prepared.prepare import prepare
from raymtl.data.tables.fit_blocks import fit_all_rows
from raymtl.distributed import sum_blocks
from raymtl.distributed.prepare_shards import on_ray
from raymtl.types import UserError
from tests.data.test_fit_blocks import large, write
from tests.data.test_prepared import SMALL, files_in, table
from tests.distributed.local import local_ray


@pytest.mark.slow
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


@pytest.mark.slow
def test_ray_adds_up_the_statistics_of_a_plain_loop(tmp_path: Path) -> None:
    """To the bit, with shares of several blocks; and a mistake is the user's, in one sentence."""
    write(tmp_path / "t.parquet")
    source = large(tmp_path / "t.parquet")
    with local_ray(num_cpus=2, include_dashboard=False):
        with mock.patch.object(sum_blocks, "MOST_TASKS", 4):
            on_ray_found = fit_all_rows(source, sum_blocks.sum_on_ray).found
        assert on_ray_found == fit_all_rows(source).found != source.found
        (tmp_path / "t.parquet").rename(tmp_path / "gone.parquet")
        with pytest.raises(UserError, match=r"t\.parquet"):
            list(sum_blocks.sum_on_ray(source, [0]))
