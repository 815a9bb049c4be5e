"""What many tests need: small problems in float64, and the digits."""

import functools
import gc
import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from raymtl.config import Experiment
from raymtl.data import Digits
from raymtl.data.episodes import build_episodes, on_device
from raymtl.learners import MetaLearner
from raymtl.schema.names import members
from raymtl.step.algorithm import Algorithm
from raymtl.types import Episode, UserError

if os.environ.get("RAYMTL_TEST_OWN"):
    # The laws hold for components from outside too: tests/schema/test_components.py runs them so.
    import tests.own_components  # noqa: F401

# Read off the unions, so that a new member is tested on arrival.
SHARING, WEIGHTING, LEARNERS, MODES = (
    tuple(members(section, Experiment)) for section in ("sharing", "weighting", "learner", "mode")
)

ADAPTING = tuple(
    name
    for name, spec in members("learner", Experiment).items()
    if issubclass(spec, MetaLearner) and spec.reads_support
)
"""The learners that read a support set."""

# The tensors of the tests are small: a second thread would only wait, and on a busy machine for long.
torch.set_num_threads(1)

PARTNERS = ("hard", "static", "pcgrad")

LONGEST = ("test_search.py", "test_trainer.py", "test_ray_dashboard.py", "test_checkpoint.py")
"""Files that start Ray or processes and wait for them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """Takes all that was imported out of the garbage collector's sight, which else walks it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _quiet_torch() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def float64() -> None:
    """Everything made in the test is float64."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture(scope="session")
def arrays() -> dict[str, np.ndarray]:
    return Digits().load()


@functools.cache
def small() -> Experiment:
    """The configuration that most tests vary; made once, since no experiment can be changed."""
    return Experiment().override(
        {
            "encoder.name": "mlp",
            "encoder.hidden": [12, 8],
            "learner.inner_lr": 0.05,
            "data.shots": 1,
            "data.queries": 1,
            "train.meta_batch": 3,
            "train.task_axis": "vmap",
            "evaluate.val_episodes": 4,
            "evaluate.test_episodes": 6,
        }
    )


def experiment(**values: Any) -> Experiment:
    """A small configuration; keys are dotted names with `__` for the dot."""
    return small().override({key.replace("__", "."): value for key, value in values.items()})


@functools.cache
def axes(sharing: str, weighting: str, learner: str) -> Experiment:
    """The three axes on all the tasks of the digits, or on two alike where one axis takes no others."""
    chosen = {"sharing__name": sharing, "weighting__name": weighting, "learner__name": learner}
    try:
        return experiment(**chosen)
    except UserError:
        return experiment(**chosen, data__tasks=["left", "right"])


@functools.cache
def two_steps(sharing: str, weighting: str, learner: str) -> Experiment:
    """The same with two inner steps, for laws of every step: the second starts from adapted parameters, as any later one does."""
    chosen = axes(sharing, weighting, learner)
    if "inner_steps" in type(chosen.learner).model_fields:
        return chosen.override({"learner.inner_steps": 2})
    return chosen


@functools.cache
def possible(sharing: str, weighting: str, learner: str) -> bool:
    """Whether the combination can run at all; what is refused is told by tests/config/test_config.py."""
    try:
        axes(sharing, weighting, learner)
    except UserError:
        return False
    return True


def combinations() -> list[tuple[str, str, str]]:
    """Every architecture, weighting and learner, each beside plain and intricate partners on the other two axes.

    Of learners, beside every architecture and every weighting: one that differentiates through its
    steps, one that takes none, one that is not differentiated, and plain multi-task training.
    """
    pairs = [
        (s, w) for s, w in itertools.product(SHARING, WEIGHTING) if s in PARTNERS or w in PARTNERS
    ]
    every = [(sharing, weighting, "maml") for sharing, weighting in pairs]
    for learner in ("protonet", "reptile", "none"):
        every += [(sharing, "static", learner) for sharing in SHARING]
        every += [("hard", weighting, learner) for weighting in WEIGHTING]
    every += [("hard", "static", learner) for learner in LEARNERS]
    every += [("cross_stitch", "pcgrad", learner) for learner in LEARNERS]
    return [combination for combination in dict.fromkeys(every) if possible(*combination)]


def star() -> list[tuple[str, str, str]]:
    """Every architecture, weighting and learner once, beside `hard`, `pcgrad` and `maml`.

    PCGrad, because it needs the gradient of every task apart, which each axis has to give.
    """
    every = [(sharing, "pcgrad", "maml") for sharing in SHARING]
    every += [("hard", weighting, "maml") for weighting in WEIGHTING]
    for learner in LEARNERS:
        weighting = "pcgrad" if possible("hard", "pcgrad", learner) else "static"
        every.append(("hard", weighting, learner))
    return [combination for combination in dict.fromkeys(every) if possible(*combination)]


def episodes_of(
    chosen: Experiment, arrays: Mapping[str, np.ndarray], step: int = 0, count: int | None = None
) -> Episode:
    indices = range(count or chosen.train.meta_batch)
    built, _ = build_episodes(
        chosen.data, arrays, seed=chosen.seed, split="train", step=step, indices=indices
    )
    (stack,) = on_device(built, "cpu")
    return stack


def with_missing_labels(episodes: Episode, share: float = 0.3, support: bool = True) -> Episode:
    """The same episodes, some labels of every task hidden in query and support; -7, no class, stands for what is hidden."""
    generator = torch.Generator().manual_seed(3)
    parts = []
    for batch in episodes if support else episodes[1:]:
        masks = {
            name: torch.rand(target.shape, generator=generator) > share
            for name, target in batch.targets.items()
        }
        targets = {
            name: torch.where(masks[name], target, -7) for name, target in batch.targets.items()
        }
        parts.append(batch._replace(targets=targets, masks=masks))
    return Episode(*parts) if support else Episode(episodes.support, *parts)


def perturbed(algorithm: Algorithm, scale: float = 0.1) -> dict[str, torch.Tensor]:
    """Initial parameters moved off the symmetric points, so that no gradient is zero by accident."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: (
            value.detach()
            + scale * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        ).requires_grad_()
        for name, value in algorithm.init_params().items()
    }
