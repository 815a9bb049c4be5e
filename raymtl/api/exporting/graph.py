"""A model with its preprocessing as one module, and the program that torch.export makes of it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from raymtl import __version__
from raymtl.api.exporting.inputs import GraphInputs, inputs_of
from raymtl.api.exporting.outputs import check_tasks, described, output_of
from raymtl.api.model import Model
from raymtl.types import UserError

TRACED = 3
"""Examples in the batch that is traced; any number passes the graph."""


class Graph(nn.Module):
    """Takes the inputs of `GraphInputs` by their names; gives the output of each task."""

    def __init__(self, model: Model, inputs: GraphInputs) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = inputs.module

    # All names that there are: torch.export keeps those that it gets, and refuses **inputs.
    def forward(
        self,
        *,
        numbers: Tensor | None = None,
        vectors: Tensor | None = None,
        categories: Tensor | None = None,
        pictures: Tensor | None = None,
        inputs: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Task -> probabilities or values, [N, ...]."""
        given = [numbers, vectors, categories, pictures, inputs]
        read = self.preprocessing(*(each for each in given if each is not None))
        dtype = next(self.model.model.parameters()).dtype
        predictions = self.model.outputs(read.to(dtype))
        return {
            task.name: output_of(task, predictions[task.name])
            for task in self.model.tasks
            if task.name in predictions
        }


class Traced(NamedTuple):
    """What is written in either format."""

    program: ExportedProgram
    graph: Graph
    inputs: GraphInputs
    about: Mapping[str, Any]
    """The content of model.json."""

    @property
    def input_names(self) -> Sequence[str]:
        return [each.name for each in self.inputs.each]

    @property
    def output_names(self) -> Sequence[str]:
        return [each["name"] for each in self.about["outputs"]]


def check_exportable(model: Model) -> GraphInputs:
    """What the graph of the model reads. Raises UserError for one that cannot be exported."""
    model.check_ready(
        "raymtl export",
        "Adapt it first, by `raymtl adapt RUN --support FILE`, and export RUN/adapted/NAME.",
    )
    if model.transductive:
        raise UserError(
            "encoder.transductive: expected false, since the predictions of an exported model "
            "must not depend on which examples are beside them, got true. Train a run without it."
        )
    check_tasks(model.tasks)
    return inputs_of(model.experiment, model.network)


@torch.no_grad()
def trace(model: Model, inputs: GraphInputs) -> Traced:
    """The program of the model, for any number of examples. Raises UserError where torch.export
    cannot make one.
    """
    graph = Graph(model, inputs).eval()
    examples = inputs.examples(TRACED)
    batch = Dim("batch")
    shapes = {name: {0: batch} for name in examples}
    try:
        outputs = graph(**examples)
        program = torch.export.export(graph, (), examples, dynamic_shapes=shapes)
    except UserError:
        raise
    except Exception as error:  # of any layer of any model
        raise UserError(
            "raymtl export: expected a model that torch.export can trace, got one that it cannot "
            f"({reason(error)}). A network of your own must not look at the values of tensors or "
            "at the number of examples."
        ) from None
    for node in program.graph.nodes:
        # Both formats would write it, with the paths of this machine.
        node.meta.pop("stack_trace", None)
    return Traced(program, graph, inputs, _about(model, inputs, outputs))


def reason(error: BaseException) -> str:
    """What an error was in the end caused by, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"


def _about(model: Model, inputs: GraphInputs, outputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """What programs have to know about the graph."""
    source = model.experiment.data
    tasks = [task for task in model.tasks if task.name in outputs]
    return {
        "format": 1,
        "raymtl": __version__,
        "run": model.experiment.name,
        "inputs": [
            {
                "name": each.name,
                "dtype": str(each.dtype).removeprefix("torch."),
                "shape": ["batch", *each.shape],
                **each.about,
            }
            for each in inputs.each
        ],
        "outputs": [
            described(source, task, outputs[task.name].shape[1:], model.class_names)
            for task in tasks
        ],
        "outside": inputs.outside,
    }
