"""Values of a configuration, and distributions of searched ones, in words."""

import json
from collections.abc import Mapping
from typing import Any

from raymtl.config import Experiment


def value_rows(experiment: Experiment, best: Mapping[str, Any]) -> list[dict[str, str]]:
    """The winner's searched values beside the configuration's own and their distributions."""
    own = experiment.flat()
    return [
        {
            "name": name,
            "value": show(value),
            "default": show(own.get(name)),
            "domain": distribution_text(experiment, name),
        }
        for name, value in best.items()
    ]


def distribution_text(experiment: Experiment, name: str) -> str:
    """The distribution of a searched value in words; the values of a simplex share theirs."""
    search = experiment.search
    distribution = search.get(name) or search.get(name.rpartition(".")[0])
    if distribution is None:
        return ""
    fields = distribution.model_dump(mode="json")
    conditions = fields.pop("when")
    kind, content = next(iter(fields.items()))
    if kind == "choice":
        text = "one of " + ", ".join(_show_choice(value) for value in content)
    elif kind == "simplex":
        text = "weights that sum to 1"
    else:
        words = {"log_uniform": "log-uniform", "uniform": "uniform", "int": "whole number"}
        text = f"{words[kind]}, {show(content[0])} to {show(content[1])}"
    when = " and ".join(f"{key} is {show(value)}" for key, value in conditions.items())
    if when:
        return f"{text}; only where {when}"
    return text


def _show_choice(value: Any) -> str:
    if value is None:
        return "null"
    return show(value)


def show(value: Any) -> str:
    """A value as a reader wants it: four significant digits, a dash for none, JSON for a list or
    mapping.
    """
    if value is None:
        return "–"
    if isinstance(value, float):
        if 1e4 <= abs(value) < 1e9:
            return f"{value:.0f}"
        return f"{value:.4g}"
    if isinstance(value, list | dict | bool):
        return json.dumps(value)
    return str(value)


def duration(seconds: float) -> str:
    """`3 min 10 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{seconds:.3g} s"
