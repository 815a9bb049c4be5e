"""`raymtl data prepare`: reads, decodes, resizes and encodes the user's files once, into shards.

A driver makes the shards: `in_this_process`, or Ray Data on all machines. Whatever makes them, and
however often it is interrupted, the files that it leaves are equal.
"""

from collections.abc import Callable, Iterator, Sequence

from raymtl.data.prepared.encode_shard import OUTPUT, prepare_shard
from raymtl.data.prepared.findings import find_in_all_rows
from raymtl.data.prepared.index import index_of
from raymtl.data.prepared.manifest import (
    INDEX,
    MANIFEST,
    PLAN,
    ROWS,
    IndexEntry,
    Manifest,
    Plan,
    ShardEntry,
)
from raymtl.data.prepared.plan import Job, Planned, ShardPlan, make_plan
from raymtl.data.shards.store import Store
from raymtl.data.tables import fit_blocks
from raymtl.data.tables.fit_blocks import SumBlocks
from raymtl.data.tables.load import notes_of_blocks
from raymtl.data.tables.load_notes import unreadable_notes
from raymtl.data.tables.source import Files
from raymtl.types import UserError

Driver = Callable[[Job, Sequence[ShardPlan]], Iterator[ShardEntry]]
"""Makes shards, in any order."""
Report = Callable[[int, int], None]
"""Is told how many rows are done, and how many there are."""

SHARD_MB = 64.0


def in_this_process(job: Job, shards: Sequence[ShardPlan]) -> Iterator[ShardEntry]:
    """Makes one shard after another."""
    for shard in shards:
        yield prepare_shard(job, shard)


def prepare(
    source: Files,
    output: str,
    *,
    driver: Driver = in_this_process,
    sum_blocks: SumBlocks = fit_blocks.in_this_process,
    shard_mb: float = SHARD_MB,
    report: Report = lambda done, rows: None,
) -> Manifest:
    """Writes the shards, the index and the manifest of prepared data to a folder or a URL.

    Of files larger than memory, `sum_blocks` first finds classes and statistics of all rows.
    Raises UserError if the folder holds something else, for rows that cannot be encoded, and if
    more pictures are damaged than `data.max_corrupt` allows.
    """
    store = Store(output, OUTPUT)
    source = find_in_all_rows(source, store, sum_blocks)
    planned = make_plan(source, output, shard_mb)
    _claim(store, planned.plan)
    entries = _make_shards(source, planned, driver, report)
    notes_of_blocks(source, entries, source.found.rows)  # for what it raises
    index = index_of(source, store, entries)
    store.publish(INDEX, index)
    manifest = Manifest(
        digest=planned.plan.digest,
        files=source,
        rows=source.found.rows,
        rows_per_group=planned.job.rows_per_group,
        shards=tuple(entries),
        index=IndexEntry(num_bytes=index.size, sha256=store.checksum(INDEX)),
    )
    manifest = manifest.model_copy(update={"checksum": manifest.content_checksum()})
    store.publish(MANIFEST, manifest.model_dump_json().encode())
    for name in store.sizes():
        if name.startswith("."):  # of a process that was killed
            store.remove(name)
    return manifest


def _make_shards(
    source: Files, planned: Planned, driver: Driver, report: Report
) -> list[ShardEntry]:
    """The entries of all shards in their order."""
    rows = sum(shard.rows for shard in planned.shards)
    entries: dict[str, ShardEntry] = {}
    done = 0
    report(done, rows)
    unreadable: list[str] = []
    for entry in driver(planned.job, planned.shards):
        entries[entry.name] = entry
        done += entry.rows
        unreadable += entry.unreadable
        unreadable_notes(source, unreadable, rows)  # raises as soon as there are too many
        report(done, rows)
    return [entries[shard.name] for shard in planned.shards]


def check_folder(store: Store) -> bool:
    """Whether a preparation was begun in the folder. Raises UserError if it holds something
    else.
    """
    names = [name for name in store.sizes() if name != ROWS and not name.startswith(".")]
    if names and PLAN not in names:
        raise UserError(
            f"{OUTPUT}: expected an empty folder or one of prepared data, got {store.shown}, which "
            f"holds {min(names)}. Choose another folder."
        )
    return bool(names)


def _claim(store: Store, plan: Plan) -> None:
    """Says in the folder what will be written. Raises UserError if it holds something else."""
    if not check_folder(store):
        store.publish(PLAN, plan.model_dump_json().encode())
        return
    try:
        before = Plan.model_validate_json(store.read(PLAN))
    except ValueError:
        before = None
    if before != plan:
        raise UserError(
            f"{OUTPUT}: expected an empty folder or one of the same data and configuration, got "
            f"{store.shown}, which was prepared from {_difference(before, plan)}. Choose another "
            "folder, or remove this one."
        )


def _difference(before: Plan | None, plan: Plan) -> str:
    if before is None:
        return "something that its plan.json does not say"
    if before.version != plan.version:
        return f"them in another form (version {before.version} instead of {plan.version})"
    if before.digest != plan.digest:
        return "another configuration"
    return "files that have changed since"
