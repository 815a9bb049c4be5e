"""Cells of many columns at once are read as those of each column are."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymtl.data.tables import plain_cells as module
from raymtl.data.tables.cells import missing_words, plainly
from raymtl.data.tables.finding import Keys
from raymtl.data.tables.forms import find_form
from raymtl.data.tables.plain_cells import plain_cells
from raymtl.data.tables.readings import Blanked

MISSING = missing_words(["", "NA", "-999"])
N = 12
COLUMNS: dict[str, list[Any]] = {
    "whole": [str(i - 3) for i in range(N)],
    "real": [f"{i / 7:.3f}" for i in range(N)],
    "powers": [f"{i}.5e-{i}" for i in range(1, N + 1)],
    "whole and real": ["1", "2.5", "1e3"] * 4,
    "spaces": [" 1", "2 ", "\t3"] * 4,
    "gaps": ["", "NA", " ", "4.5", "-999", "6"] * 2,
    "whole with gaps": ["", "NA", "3"] * 4,
    "nothing": ["", "NA", " ", "-999"] * 3,
    "codes": ["01", "02", "10"] * 4,
    "one code": ["1"] * 11 + ["007"],
    "zero": ["0", "-0", "0.0"] * 4,
    "plus": ["+1", "2", "3"] * 4,
    "hexadecimal": ["0x1F", "12", "3"] * 4,
    "keys": [str(10**20 + i) for i in range(N)],
    "long": [str(2**62 + i) for i in range(N)],
    "days": [f"202401{i + 10}" for i in range(N)],
    "dates": [f"2024-01-{i + 10}" for i in range(N)],
    "flags": ["true", "False"] * 6,
    "words": ["a", "b", "c"] * 4,
    "word at the end": ["1"] * 11 + ["x"],
    "comma": ["1,5", "2,5"] * 6,
    "thousands": ["1,500", "2"] * 6,
    "percent": ["5 %", "6 %"] * 6,
    "points": [".5", "5.", "1.5"] * 4,
    "not finite": ["inf", "nan", "1.5"] * 4,
    "null": [None, "1", "2"] * 4,
}


@pytest.mark.parametrize("cells", [module.CELLS, 3 * N])
@pytest.mark.parametrize("chunks", [1, 3])
def test_cells_of_many_columns_are_those_of_each(
    cells: int, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CELLS", cells)
    module._kept.clear()
    step = N // chunks
    columns = {
        name: pa.chunked_array([pa.array(v[i : i + step], pa.string()) for i in range(0, N, step)])
        for name, v in COLUMNS.items()
    }
    found = plain_cells(list(columns.values()), MISSING)
    done = [list(columns)[place] for place in found.numbers]
    assert {
        "whole",
        "real",
        "powers",
        "whole and real",
        "spaces",
        "gaps",
        "whole with gaps",
    } <= set(done)
    assert not {
        "codes",
        "one code",
        "keys",
        "days",
        "dates",
        "flags",
        "words",
        "word at the end",
        "comma",
    } & set(done)
    for place, values in found.numbers.items():
        name = list(columns)[place]
        alone = plainly(columns[name], MISSING)
        assert values.type == alone.type and values.equals(alone), name
    plain = Blanked(columns, MISSING)
    for name, finding in plain.plain().items():
        assert finding == find_form(plain[name], Keys()), name


def test_reused_memory_is_looked_at_anew() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.integers(0, 1000, 50)
        column = pa.chunked_array([pa.array([str(v) for v in values])])
        assert plain_cells([column], MISSING).numbers[0].to_pylist() == values.tolist()


def test_other_missing_words_are_looked_at_anew() -> None:
    column = pa.chunked_array([pa.array(["1", "?", "3"])])
    assert plain_cells([column], MISSING).numbers == {}
    assert plain_cells([column], missing_words(["?"])).numbers[0].to_pylist() == [1, None, 3]
