"""Tables are read whole, also while they are written anew."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raymtl.storage import formats


def test_a_rewritten_table_is_never_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is replaced after its schema is read and before its pages are: the rows are those of the first."""
    path = tmp_path / "rows.parquet"
    first = [{"step": step, "loss": 0.5} for step in range(3)]
    formats.write_rows(path, first)
    plain_read = pq.ParquetDataset.read

    def read_after_a_rewrite(self: pq.ParquetDataset, **values: Any) -> Any:
        formats.write_rows(path, [{"other": "x" * 1000, "step": 7}] * 50)
        return plain_read(self, **values)

    monkeypatch.setattr(pq.ParquetDataset, "read", read_after_a_rewrite)
    assert formats.read_rows(path) == first
    monkeypatch.undo()
    assert len(formats.read_rows(path)) == 50
