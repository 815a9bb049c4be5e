"""Models that were adapted to the support sets of requests."""

import tempfile
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from raymtl.adaptation.adapt import check_finite
from raymtl.adaptation.examples import ClassNames, read_support
from raymtl.prediction.trained import Trained
from raymtl.serving.grouping import grouped
from raymtl.serving.least_recent import LeastRecent
from raymtl.serving.messages import Answer, Support, refused
from raymtl.serving.row_files import refusing_rows, write_rows
from raymtl.types import Batch, Params, UserError


class AdaptedModel(NamedTuple):
    """What an adapted model has beside the run's own."""

    params: Params
    """The tensors that differ from those of the run."""
    class_names: ClassNames
    content: Mapping[str, Any]
    """What the request for it is answered."""


class _Examples(NamedTuple):
    """A support set that was read."""

    support: Support
    batch: Batch
    class_names: ClassNames
    notes: Sequence[str]

    @property
    def form(self) -> Hashable:
        """Those of one form can be adapted to together."""
        leaves = tree_leaves(self.batch)
        return self.support.steps, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


class AdaptedModels:
    """Adapts a model, and keeps the adapted ones within a number of bytes. For one thread."""

    def __init__(self, trained: Trained, most_bytes: float) -> None:
        self.trained = trained
        self._kept: LeastRecent[AdaptedModel] = LeastRecent(most_bytes)

    def get(self, handle: str) -> AdaptedModel | None:
        """The model with this handle, if it is still kept."""
        return self._kept.get(handle)

    @torch.no_grad()
    def adapt(self, supports: Sequence[Support]) -> list[Answer]:
        """Adapts the run's model to each support set; to those of one form at once."""
        answers: dict[str, Answer] = {}
        examples: list[_Examples] = []
        for support in {each.handle: each for each in supports}.values():
            known = self.get(support.handle)
            if known is not None:
                answers[support.handle] = Answer(200, known.content)
                continue
            try:
                examples.append(self._read(support))
            except UserError as error:
                answers[support.handle] = refused(str(error))
        for group in grouped(examples, lambda each: each.form):
            for each, params in zip(group, self._adapted(group), strict=True):
                answers[each.support.handle] = self._keep(each, params)
        return [answers[support.handle] for support in supports]

    def _read(self, support: Support) -> _Examples:
        trained = self.trained
        with tempfile.TemporaryDirectory() as name, refusing_rows(Path(name)) as folder:
            path = write_rows(support.rows, trained.experiment.data, folder)
            read = read_support(path, trained.experiment, trained.algorithm, task=support.task)
        batch = trained.beside(read.episode.support)
        return _Examples(support, batch, read.class_names, [note.text for note in read.notes])

    def _adapted(self, group: Sequence[_Examples]) -> list[Params]:
        """The parameters after learning from each support set."""
        algorithm, params = self.trained.algorithm, self.trained.params
        steps = group[0].support.steps
        batches = [each.batch for each in group]
        if len(batches) == 1:
            return [algorithm.adapt(params, batches[0], steps)]
        stacked = tree_map(lambda *leaves: torch.stack(leaves), *batches)
        together = vmap(lambda batch: algorithm.adapt(params, batch, steps))(stacked)
        numbers = range(len(batches))
        return [{name: value[n] for name, value in together.items()} for n in numbers]

    def _keep(self, examples: _Examples, params: Params) -> Answer:
        try:
            check_finite("rows", params)
        except UserError as error:
            return refused(str(error))
        own = self.trained.params
        changed = {
            name: value.clone()
            for name, value in params.items()
            if name not in own or not torch.equal(value, own[name])
        }
        support, class_names = examples.support, examples.class_names
        content = {
            "model": support.handle,
            "examples": len(support.rows),
            "classes": {name: list(classes) for name, classes in class_names.items()},
            "notes": list(examples.notes),
        }
        size = sum(value.numel() * value.element_size() for value in changed.values())
        self._kept.put(support.handle, AdaptedModel(changed, class_names, content), size)
        return Answer(200, content)
