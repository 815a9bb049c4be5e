"""The benchmark of pre-trained networks: what its rows train, and how it compares them."""

import pytest

from benchmarks import pretrained
from benchmarks.pretrained import ROWS, Options, compared, experiment, first_task

pytest.importorskip("timm", reason="timm is not installed (the extra raymtl[vision])")
pytest.importorskip(pretrained.PACKAGE, reason="the weights are not installed")
OPTIONS = Options(steps=None, cache=".features")


def trained(row: str) -> int:
    """How many numbers a row trains."""
    return sum(
        value.numel() for value in experiment(row, 0, OPTIONS).build().init_params().values()
    )


def test_low_rank_adapters_are_a_fiftieth_of_the_network() -> None:
    full, lora, heads = (trained(row) for row in ("full", "lora", "heads"))
    assert heads < lora <= 0.02 * full


def test_rows_of_a_group_are_of_the_same_pictures_and_scores() -> None:
    groups: dict[str, list[str]] = {}
    for name, row in ROWS.items():
        groups.setdefault(row.group, []).append(name)
    for names in groups.values():
        data = [experiment(name, 3, OPTIONS).data for name in names]
        plain = [source.model_copy(update={"augment": False}) for source in data]
        assert all(source == plain[0] for source in plain)
        assert data[0].model_dump()["split_seed"] == 3


def test_rows_are_compared_seed_by_seed() -> None:
    rows = [
        {"row": name, "seed": seed, "test": {"people": score, "trees": score + 0.2}}
        for name, seed, score in (
            ("full", 0, 0.5),
            ("full", 1, 0.7),
            ("lora", 0, 0.49),
            ("lora", 1, 0.69),
            ("lora", 2, 0.1),
        )
    ]
    assert first_task(rows[0]) == pytest.approx(60)
    assert compared(rows, "lora") == "-1.00 ± 0.00 to full"
    assert compared(rows, "full") == compared(rows, "heads") == ""
