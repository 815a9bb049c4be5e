"""Data at fault where builders read them: a sentence that names the fault, and the rest goes on."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from raymtl.config import Experiment
from raymtl.data.left_out import LEFT_OUT
from raymtl.data.packed import pack_episodes
from raymtl.data.tables import folders, shuffle_buffer
from raymtl.data.tables.pictures import measured
from raymtl.data.tables.probe import DecoderProbe
from raymtl.distributed import builders
from raymtl.distributed.builders import BuildParts, Parts, built_parts
from raymtl.distributed.share_builder import ShareBuilder
from raymtl.distributed.streaming import StepEpisodes, UnpackEpisodes, streamed
from raymtl.types import UserError
from tests.conftest import experiment
from tests.data.own import write_pictures
from tests.data.test_files_stream import numbered
from tests.data.test_prepared_faults import KILLED_BY
from tests.distributed.local import local_ray
from tests.narrowing import several_stacks

ray = pytest.importorskip("ray")

KILLER, KILLS = "RAYMTL_TEST_KILLER", "RAYMTL_TEST_KILLS"
"""The path of a picture that kills whoever decodes it, and of the file that counts the kills."""


PICTURES = 10
"""In a block."""
MEASURED = "raymtl.data.tables.encode.measured"
PROBE = "raymtl.data.tables.shuffle_buffer.DecoderProbe"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray(num_cpus=2, include_dashboard=False):
        yield


def built(chosen: Experiment, arrays: Any, steps: int) -> list[StepEpisodes]:
    """The first steps of one worker, from one builder."""
    parts = Parts(0, steps, 1)
    (stream,) = built_parts(chosen, ray.put(arrays), parts, 1)
    return list(streamed(stream, UnpackEpisodes(parts.each_share)))


@pytest.mark.slow
def test_storage_that_a_builder_does_not_see_is_named(tmp_path: Path) -> None:
    chosen = experiment(data=numbered(tmp_path, in_memory_mb=0.04), encoder__hidden=[4])
    arrays = chosen.data.load()
    (tmp_path / "numbered.parquet").rename(tmp_path / "elsewhere.parquet")
    with pytest.raises(UserError, match=r"data.path: expected .*numbered.parquet.* on \S+") as told:
        built(chosen, arrays, 2)
    assert "\n" not in str(told.value)


class KilledByPicture(BuildParts):
    """A builder that dies when it decodes the killer."""

    def __init__(self, paths: dict[str, str], *arguments: Any) -> None:
        folders.PICTURES_A_BLOCK = PICTURES
        super().__init__(*arguments)
        killer = Path(paths[KILLER]).read_bytes()
        command = (sys.executable, "-c", KILLED_BY.format(path=paths[KILLER]))

        def deadly(content: bytes, *settings: Any) -> Any:
            if content == killer:
                with Path(paths[KILLS]).open("a") as kills:
                    kills.write("killed\n")
                os.kill(os.getpid(), signal.SIGKILL)
            return measured(content, *settings)

        mock.patch(MEASURED, deadly).start()
        mock.patch(PROBE, return_value=DecoderProbe(command)).start()


@pytest.mark.slow
def test_a_picture_that_kills_builders_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second builder leaves it out, and all episodes are those without it."""
    monkeypatch.setattr(folders, "PICTURES_A_BLOCK", PICTURES)
    root = write_pictures(tmp_path / "pictures")
    data = {"name": "files", "path": str(root), "tasks": {"colour": {}}, "size": 8, "channels": 1}
    data |= {"in_memory_mb": 0.0035, "shots": 2, "queries": 4, "max_corrupt": 0.5, "hold_steps": 2}
    chosen = experiment(data=data, encoder__name="mlp", encoder__hidden=[4], train__meta_batch=2)
    chosen = chosen.resolve()
    assert chosen.data.is_streamed
    arrays = chosen.data.load()
    killer = sorted(root.rglob("*.png"))[0]
    paths = {KILLER: str(killer), KILLS: str(tmp_path / "kills")}

    class Builder(KilledByPicture):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(paths, *arguments)

    monkeypatch.setattr(builders, "BuildParts", Builder)
    LEFT_OUT.taken()
    steps = built(chosen, arrays, 20)
    assert LEFT_OUT.taken() == {f"{killer.relative_to(root)} (it kills the decoder)"}
    assert (tmp_path / "kills").read_text() == "killed\n"

    def damaged(content: bytes, *settings: Any) -> Any:
        if content == killer.read_bytes():
            raise OSError("damaged")
        return measured(content, *settings)

    monkeypatch.setattr(MEASURED, damaged)
    shuffle_buffer._READERS.clear()
    expected = ShareBuilder(chosen, arrays, 1)
    for step, share, episodes in steps:
        assert share == 0
        np.testing.assert_array_equal(
            pack_episodes(several_stacks(episodes)), pack_episodes(expected.build(step, 0))
        )
