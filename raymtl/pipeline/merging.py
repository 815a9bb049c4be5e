"""Merges the single-task models that a search has trained into models of all tasks."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ray
import torch

from raymtl.config import Experiment
from raymtl.data import Arrays
from raymtl.distributed.carried import Carried, carry
from raymtl.evaluation.baselines import SINGLE, baselines, together
from raymtl.evaluation.merging.merge import METHODS, Family, merge, note
from raymtl.pipeline.comparisons import (
    ArraysRef,
    candidate_folder,
    copy_model,
    kept_score,
    results_of,
    start_scoring,
)
from raymtl.reporting.terminal import View
from raymtl.storage.fence import Attempt
from raymtl.storage.notes import Note


class MergedModels(NamedTuple):
    """The merged models of a run: NAME -> folder, and notes on those that are not made."""

    folders: Mapping[str, Path] = {}
    notes: Sequence[Note] = ()


class Candidate(NamedTuple):
    """A trained single-task model."""

    experiment: Experiment
    folder: Path
    score: float
    """On the validation split."""


def merge_baselines(
    experiment: Experiment,
    chosen: Experiment,
    attempt: Attempt,
    arrays: ArraysRef,
    cpus: float,
    view: View,
) -> MergedModels:
    """Merges the trained candidates for the single-task baselines, and scores what comes of it."""
    names = experiment.data.task_names
    if "merged" not in experiment.tune.chosen_baselines or len(names) < 2:
        return MergedModels()
    run = attempt.folder
    candidates = {name: [*_trained(experiment, chosen, run, name)] for name in names}
    families = [*families_of(experiment, candidates)]
    if not families:
        text = "not made, since single-task models of every task are needed, and some diverged"
        return MergedModels(notes=(note(text, "train.lr"),))
    view.say(f"merging the single-task models: {', '.join(METHODS)}")
    refusals = _merge_all(families, run, arrays, cpus)
    made: dict[str, Path] = {}
    scored = []
    for name in METHODS:
        candidate = candidate_folder(run, name, 0)
        if not (candidate / "model.safetensors").exists():
            continue
        made[name] = run / "baselines" / name
        if not (made[name] / "metrics.json").exists():
            copy_model(attempt, candidate, made[name])
            scored.append(start_scoring(made[name], arrays, experiment.data, cpus))
    results_of(scored)
    return MergedModels(made, refusals)


def _trained(
    experiment: Experiment, chosen: Experiment, run: Path, task: str
) -> Iterator[Candidate]:
    """The single-task models of a task that did not diverge."""
    baseline = f"{SINGLE}{task}"
    for number, single in enumerate(baselines(experiment, chosen)[baseline]):
        folder = candidate_folder(run, baseline, number)
        if (folder / "model.safetensors").exists():
            yield Candidate(single, folder, kept_score(folder, single))


def families_of(
    experiment: Experiment, candidates: Mapping[str, Sequence[Candidate]]
) -> Iterator[Family]:
    """The families that have a model of each task; of several for a task the one with the best
    validation score.

    A search may choose another encoder or learner than the configuration has. Models of different
    ones cannot be merged with each other.
    """
    seen: list[Experiment] = []
    for tried in candidates.values():
        for candidate in tried:
            alike = [one for one in seen if _are_alike(one, candidate.experiment)]
            if not alike:
                seen.append(candidate.experiment)
    for kind in seen:
        folders = {}
        for task, tried in candidates.items():
            own = [each for each in tried if _are_alike(kind, each.experiment)]
            if own:
                folders[task] = max(own, key=lambda each: each.score).folder
        if len(folders) == len(candidates):
            yield Family(together(kind, experiment.data), folders)


def _are_alike(one: Experiment, other: Experiment) -> bool:
    return one.encoder == other.encoder and one.learner == other.learner


def _merge_all(
    families: Sequence[Family], run: Path, arrays: ArraysRef, cpus: float
) -> tuple[Note, ...]:
    """Makes the models that are not made yet; the notes on those that cannot be made."""
    carried = [(carry(family.experiment), dict(family.folders)) for family in families]
    tasks = []
    for name in METHODS:
        folder = candidate_folder(run, name, 0)
        if not (folder / "model.safetensors").exists():
            options = {"num_cpus": cpus, "name": f"{run.name}/{name} merging"}
            tasks.append(_merge_here.options(**options).remote(carried, name, arrays, folder))
    notes = [found for found in results_of(tasks) if found is not None]
    return tuple(dict.fromkeys(notes))


@ray.remote
def _merge_here(
    carried: Sequence[tuple[Carried, dict[str, Path]]], name: str, arrays: Arrays, folder: Path
) -> Note | None:
    torch.set_num_threads(
        max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
    )
    families = [Family(each.unpack(), folders) for each, folders in carried]
    return merge(families, name, arrays, folder)
