"""The model of a run in one process: batches of requests in, answers out."""

import tempfile
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from raymtl.adaptation.rows import LabelledRows
from raymtl.prediction.new_rows import RowsToPredict, outputs_of, table_of
from raymtl.prediction.trained import Trained, load_trained
from raymtl.serving.adapted_models import AdaptedModel, AdaptedModels
from raymtl.serving.answers import plain_rows
from raymtl.serving.grouping import grouped
from raymtl.serving.messages import MISSING, Answer, Query, Support, refused
from raymtl.serving.row_files import refusing_rows, write_rows
from raymtl.types import Batch, UserError

ROWS_TOGETHER = 64
"""Adapted models predict together where each has at most so many rows."""


class _Request(NamedTuple):
    """A query and the adapted model that it asks for; None for the run's own."""

    place: int
    query: Query
    model: AdaptedModel | None

    @property
    def form(self) -> Hashable:
        """Rows of one form are read together: the same columns, and the same names of classes."""
        columns = frozenset(name for row in self.query.rows for name in row)
        names = self.model.class_names if self.model else {}
        return columns, tuple(sorted(names.items()))


class _Rows(NamedTuple):
    """Rows of one adapted model, or of the run's own, by their numbers [N]."""

    model: AdaptedModel | None
    numbers: Tensor

    @property
    def form(self) -> Hashable:
        """Those of one form are predicted together."""
        if self.model is None or len(self.numbers) > ROWS_TOGETHER:
            return int(self.numbers[0])
        return tuple((name, value.shape) for name, value in self.model.params.items())


class ServedModel:
    """Adapts and predicts for many requests at once. For one thread."""

    def __init__(self, folder: Path, kept_bytes: float, device: str = "cpu") -> None:
        """Loads the model. Raises UserError for a folder without one."""
        self.trained = load_trained(folder).on(device)
        self.adapted = AdaptedModels(self.trained, kept_bytes)

    def adapt(self, supports: Sequence[Support]) -> list[Answer]:
        """A handle for each support set."""
        return self.adapted.adapt(supports)

    @torch.no_grad()
    def predict(self, queries: Sequence[Query]) -> list[Answer]:
        """The predictions for the rows of each query."""
        refusals = self._adapt_anew(queries)
        answers: dict[int, Answer] = {}
        requests = []
        for index, query in enumerate(queries):
            model = self.adapted.get(query.handle or "")
            if query.handle is None or model is not None:
                requests.append(_Request(index, query, model))
            else:
                answers[index] = refusals.get(query.handle, MISSING)
        for group in grouped(requests, lambda request: request.form):
            answers |= self._answers(group)
        return [answers[index] for index in range(len(queries))]

    def _adapt_anew(self, queries: Sequence[Query]) -> dict[str, Answer]:
        """Adapts to the support sets that queries bring; returns what could not be adapted to."""
        supports = [query.support for query in queries if query.support is not None]
        answers = zip(supports, self.adapted.adapt(supports), strict=True)
        return {support.handle: answer for support, answer in answers if answer.status != 200}

    def _answers(self, group: Sequence[_Request]) -> dict[int, Answer]:
        """Of requests whose rows have one form. A mistake in some rows is no other request's."""
        try:
            rows = self._read(group)
            predicted = self._predicted(group, rows)
        except UserError as error:
            if len(group) == 1:
                return {group[0].place: refused(str(error))}
            answers: dict[int, Answer] = {}
            for request in group:
                answers |= self._answers([request])
            return answers
        spans = zip(group, _spans(group), strict=True)
        return {
            request.place: Answer(200, {"predictions": predicted[span]}) for request, span in spans
        }

    def _read(self, group: Sequence[_Request]) -> LabelledRows:
        for request in group:
            trained = self._with(request.model)
            trained.check_ready("predict", "Call /adapt first.")
        asked = [row for request in group for row in request.query.rows]
        with tempfile.TemporaryDirectory() as name, refusing_rows(Path(name)) as folder:
            path = write_rows(asked, trained.experiment.data, folder)
            rows = RowsToPredict(trained, str(path)).read_all(trained)
        if len(rows.inputs) != len(asked):
            raise UserError(
                f"rows: expected {len(asked)} rows that can be read, got {len(rows.inputs)}. "
                "Correct the others."
            )
        return rows

    def _with(self, model: AdaptedModel | None) -> Trained:
        """The run's own model, or an adapted one."""
        if model is None:
            return self.trained
        params = {**self.trained.params, **model.params}
        return self.trained._replace(params=params, class_names=model.class_names)

    def _predicted(self, group: Sequence[_Request], rows: LabelledRows) -> list[dict[str, object]]:
        """What the answers say of each row."""
        parts = self._parts(group)
        outputs = [
            each
            for together in grouped(parts, lambda part: part.form)
            for each in self._outputs(together, rows.inputs)
        ]
        order = torch.cat([numbers for numbers, _ in outputs]).argsort()
        tasks = self.trained.algorithm.tasks
        in_order = {
            task.name: torch.cat([each[task.name] for _, each in outputs])[order] for task in tasks
        }
        return plain_rows(tasks, table_of(self.trained, rows, in_order))

    def _parts(self, group: Sequence[_Request]) -> list[_Rows]:
        """The rows of each model. Where predictions depend on the other rows, of each request."""
        transductive = self.trained.algorithm.transductive

        def whose(item: tuple[_Request, slice]) -> Hashable:
            request, _ = item
            if transductive:
                return request.place
            return request.query.handle

        every = torch.arange(sum(len(request.query.rows) for request in group))
        items = grouped(zip(group, _spans(group), strict=True), whose)
        return [
            _Rows(of_model[0][0].model, torch.cat([every[span] for _, span in of_model]))
            for of_model in items
        ]

    def _outputs(
        self, parts: Sequence[_Rows], inputs: Tensor
    ) -> list[tuple[Tensor, Mapping[str, Tensor]]]:
        """The outputs of each part, with the numbers of its rows."""
        if len(parts) > 1 and not self.trained.algorithm.transductive:
            return self._outputs_together(parts, inputs)
        every: list[tuple[Tensor, Mapping[str, Tensor]]] = []
        for part in parts:
            outputs = outputs_of(self._with(part.model), inputs[part.numbers])
            every.append((part.numbers, outputs))
        return every

    def _outputs_together(
        self, parts: Sequence[_Rows], inputs: Tensor
    ) -> list[tuple[Tensor, Mapping[str, Tensor]]]:
        """One pass for several adapted models; what fills up the rows of some is thrown away."""
        most = max(len(part.numbers) for part in parts)
        filled = [
            torch.cat([part.numbers, part.numbers[:1].expand(most - len(part.numbers))])
            for part in parts
        ]
        models = [part.model.params for part in parts if part.model is not None]
        params = {name: torch.stack([model[name] for model in models]) for name in models[0]}
        trained = self.trained

        def outputs(own: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
            return trained.algorithm.predict({**trained.params, **own}, rows)

        rows = trained.beside(Batch(inputs[torch.cat(filled)], {}, {})).inputs
        assert isinstance(rows, Tensor), "rows of a request have one input for all tasks"
        every = vmap(outputs)(params, rows.unflatten(0, (len(parts), most)))
        return [
            (part.numbers, {name: of[n, : len(part.numbers)].cpu() for name, of in every.items()})
            for n, part in enumerate(parts)
        ]


def _spans(group: Sequence[_Request]) -> list[slice]:
    """Where the rows of each request stand."""
    ends = list(accumulate(len(request.query.rows) for request in group))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
