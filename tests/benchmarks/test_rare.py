"""The benchmark of rare positives, on a table and by hand."""

from io import StringIO
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks import rare


def test_weights_find_more_of_the_rare() -> None:
    eights = rare.digits(Path())
    assert 0.02 < eights.yes.mean() < 0.05
    few = eights._replace(inputs=eights.inputs[:800], yes=eights.yes[:800], group=np.arange(800))
    found = {
        name: rare.scores(few, name, 0, steps=60) for name in (rare.DEFAULT, "pos_weight, AUROC")
    }
    assert found["pos_weight, AUROC"]["half"] > found[rare.DEFAULT]["half"]
    assert all(50 < own["auroc"] <= 100 for own in found.values())


def test_the_table_has_paired_differences() -> None:
    rows = [
        {"table": "d", "training": name, "seed": seed, "auroc": 90.0, "half": f1, "tuned": f1 + 1}
        for name, values in {rare.DEFAULT: (50.0, 70.0), "plain, AUROC": (51.0, 73.0)}.items()
        for seed, f1 in enumerate(values)
    ]
    console = Console(width=110, record=True, file=StringIO())
    console.print(rare.table_of(rows))
    text = console.export_text()
    assert "2.0 ± 12.7" in text  # 1 and 3; t is 12.7 for two seeds
    assert "1.0 ± 0.0" in text  # tuned against the default at 1/2
