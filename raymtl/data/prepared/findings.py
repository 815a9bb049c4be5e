"""What is found in all rows before the first shard is made."""

import hashlib

from raymtl.data.prepared.manifest import PLAN
from raymtl.data.prepared.plan import fingerprint
from raymtl.data.shards.store import Store
from raymtl.data.tables.dataset import TableDataset
from raymtl.data.tables.fit_blocks import SumBlocks, fit_all_rows
from raymtl.data.tables.schema import Fitted
from raymtl.data.tables.source import Files


def find_in_all_rows(source: Files, store: Store, sum_blocks: SumBlocks) -> Files:
    """The files with classes and statistics of all rows.

    What was found stays in a hidden file until the shards are complete, so that an interrupted
    preparation does not read all rows once more for it.
    """
    if source.found.pool is None:
        return source
    content = source.model_dump_json() + fingerprint(TableDataset(source))
    name = f".found-{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"
    if store.holds(name):
        fitted = Fitted.model_validate_json(store.read(name))
        return source.model_copy(update={"fitted": fitted})
    found = fit_all_rows(source, sum_blocks)
    names = [other for other in store.sizes() if not other.startswith(".")]
    if found is not source and (not names or PLAN in names):
        store.publish(name, found.found.model_dump_json().encode())
    return found
