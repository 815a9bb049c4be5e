"""The Grafana dashboard shows every metric that a training exports, by the tags that it has, and no other."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from raymtl.reporting import ray_metrics
from tests.narrowing import present

FILE = Path(__file__).parent.parent.parent / "clusters" / "grafana-raymtl.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Metric -> its tags, as a training sets them."""
    tags: dict[str, set[str]] = {}

    class Recorder:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.keys = name, set(tag_keys)

        def set(self, value: float, given: dict[str, str]) -> None:
            assert set(given) == self.keys
            tags[self.name] = set(given)

    monkeypatch.setattr(ray_metrics, "Gauge", Recorder)
    observe = ray_metrics.observer("quickstart/trial-0001", ("left",))
    numbers = ("step", "lr", "grad_norm", "seconds", "data_wait_pct", "communication_pct")
    observe(dict.fromkeys((*numbers, "loss.left", "weight.left", "val.score"), 1.0))
    assert len(tags) == 9, "a step of data in memory, without builders"
    of_data = ("read_mb", "builder_cpu_pct")
    observe(dict.fromkeys((*numbers, *of_data, "loss.left", "weight.left", "val.score"), 1.0))
    return tags


def shown() -> dict[str, set[str]]:
    """Metric, without the prefix that Ray gives it -> the labels that its panel tells lines apart by."""
    found: dict[str, set[str]] = {}
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            keys, metric = present(
                re.fullmatch(r"max by \(([\w, ]+)\) \(ray_(\w+)\{.+\}\)", target["expr"])
            ).groups()
            found[metric] = set(keys.split(", "))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == found[metric]
            assert set(re.findall(r'(\w+)=~"\$(\w+)"', target["expr"])) == {
                (key, key) for key in found[metric]
            }
    return found


def test_metrics_and_panels_match(
    exported: dict[str, set[str]],
) -> None:
    assert len(exported) == 11
    assert shown() == exported


def test_variables_read_metrics_that_there_are(exported: dict[str, set[str]]) -> None:
    variables = {v["name"]: v for v in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "run", "task", "score"}
    for name in ("run", "task", "score"):
        definition = variables[name]["definition"]
        assert definition == variables[name]["query"]["query"]
        metric, label = present(
            re.fullmatch(r"label_values\(ray_(\w+)(?:\{.+\})?, (\w+)\)", definition)
        ).groups()
        assert label == name
        assert label in exported[metric]


def test_panels_do_not_overlap() -> None:
    """They have ids of their own."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        for at in (panel["gridPos"] for panel in panels)
    ]
    assert max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in panels) == 24
    assert sum(map(len, cells)) == len(set().union(*cells))


def test_nothing_is_loaded_from_elsewhere() -> None:
    assert "http" not in FILE.read_text()
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in DASHBOARD["panels"])
