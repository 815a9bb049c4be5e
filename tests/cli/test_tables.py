"""Scores as commands print them."""

import pytest

from raymtl.cli.tables import print_scores


def test_no_score_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many models there are, and however narrow the terminal is."""
    monkeypatch.setenv("COLUMNS", "80")
    value = {"mean": 0.5, "ci95": 0.0125}
    score = {"before": value, "after": value, "gain": {"mean": 0.0, "ci95": 0.01}}
    names = [f"model-of-a-long-name-{number}" for number in range(20)]
    models = [{"name": name, "score": score, "tasks": {"a": {"accuracy": score}}} for name in names]
    print_scores(models)
    printed = capsys.readouterr().out
    heading, _, *rows = printed.splitlines()
    assert heading.split() == [names[0], *names]
    assert [row.count("0.500±0.013") for row in rows] == [20, 20]
