"""`data prepare`: encodes the user's files once, into shards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer
import yaml

from raymtl.cli.options import Address, Config, Sets, load_config, overrides
from raymtl.reporting.console import plain_console
from raymtl.reporting.notes import print_notes
from raymtl.reporting.progress import rows_progress
from raymtl.storage.yaml_document import read_document
from raymtl.types import UserError

if TYPE_CHECKING:
    from raymtl.data import Files
    from raymtl.data.prepared.prepare import Driver
    from raymtl.data.tables.fit_blocks import SumBlocks

ONE_LINE = 1 << 20
"""Letters of a line of YAML, so that it is one line."""


def prepare_data(
    config: Config,
    output: Annotated[str, typer.Option(help="The folder or the URL that the shards go to.")],
    sets: Sets = [],  # noqa: B006
    address: Address = None,
    shard_mb: Annotated[
        float, typer.Option(help="Megabytes of encoded rows in a shard, about.", min=0.001)
    ] = 64.0,
) -> None:
    """Read, decode, resize, encode and split your files once; train from the shards."""
    from raymtl.data.prepared.output import check_outside, checked_output
    from raymtl.data.prepared.prepare import prepare
    from raymtl.data.tables.load import notes_of_blocks

    place = checked_output(output)
    source = _files(config, sets)
    check_outside(place, source)
    drivers = _drivers(source, address)
    with rows_progress() as report:
        manifest = prepare(source, place, **drivers, shard_mb=shard_mb, report=report)
    console = plain_console(highlight=False, soft_wrap=True)
    notes = notes_of_blocks(source, manifest.shards, manifest.rows)
    print_notes(console, [*manifest.files.found.notes, *notes])
    shards = "1 shard"
    if len(manifest.shards) > 1:
        shards = f"{len(manifest.shards)} shards"
    # Quoted where YAML needs it, as for a comma.
    data = {"data": {"name": "prepared", "path": output}}
    section = yaml.safe_dump(data, default_flow_style=None, sort_keys=False, width=ONE_LINE)
    console.print(
        f"{manifest.rows:,} rows in {shards} of {output} "
        f"({manifest.num_bytes / 1e6:,.1f} MB). To train from them:\n\n"
        f"{section.rstrip()}",
        markup=False,
    )


def _files(config: Path, sets: list[str]) -> "Files":
    """The user's files of a configuration, with their findings."""
    from raymtl.data import Files
    from raymtl.data.tables.fit_stream import NotStreamableError

    try:
        source = load_config(config, sets).data
    except UserError as error:
        if not isinstance(error.__context__, NotStreamableError):
            raise
        # Large files are looked at by rows. From the shards, other episodes can be drawn as well.
        source = load_config(config, [*sets, "data.episodes=rows"]).data
        assert isinstance(source, Files)
        return source.for_episodes(_episodes(config, sets))
    if not isinstance(source, Files):
        raise UserError(
            f"{config}: data.name: expected files, got {getattr(source, 'name', 'another source')}."
            " Only your own files need to be prepared."
        )
    return source


def _episodes(config: Path, sets: list[str]) -> str:
    """What `data.episodes` says."""
    data = read_document(config).tree.get("data") or {}
    return str(overrides(sets).get("data.episodes", data.get("episodes", "rows")))


class _Drivers(TypedDict, total=False):
    driver: "Driver"
    sum_blocks: "SumBlocks"


def _drivers(source: "Files", address: str | None) -> _Drivers:
    """Ray Data for data that are larger than memory or if a cluster is given; else this process."""
    from raymtl.cluster.address import resolve

    if resolve(address) is None and source.found.pool is None:
        return {}
    from raymtl.distributed.connection import start_ray
    from raymtl.distributed.prepare_shards import on_ray
    from raymtl.distributed.sum_blocks import sum_on_ray

    start_ray(address)
    return {"driver": on_ray, "sum_blocks": sum_on_ray}
