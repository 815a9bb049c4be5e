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


def test_a_model_that_does_not_adapt_has_one_column(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"mean": 0.5, "ci95": 0.0125}
    score = {"before": value, "after": value, "gain": {"mean": 0.0, "ci95": 0.0}}
    model = {"score": score, "tasks": {"a": {"accuracy": score}}, "delta_m": 1.0}
    models = [{"name": name, "adapts": False, **model} for name in ("winner", "default")]
    print_scores(models)
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["held-out", "test", "winner", "default"]
    assert [row.split()[-2:] for row in rows[:2]] == 2 * [["0.500±0.013", "0.500±0.013"]]
    assert rows[2].split()[-2:] == ["+1.0", "+1.0"]
