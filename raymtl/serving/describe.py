"""What a client is told of the model."""

from typing import Any

from raymtl.data import files_of
from raymtl.prediction.trained import Trained
from raymtl.serving.row_files import PICTURE


def describe(trained: Trained) -> dict[str, Any]:
    """The tasks with their kinds and classes, the cells of a row, and what a support set does."""
    source = trained.experiment.data
    files = files_of(source)
    if files is None:
        cells = {"input": f"numbers of the shape {list(source.input_shape)}, row-major"}
    elif files.is_image:
        cells = {PICTURE: "a file of a picture in base64"}
    else:
        cells = {column.column: str(column.role) for column in files.found.columns}
    tasks = [
        {
            "name": task.name,
            "kind": task.kind.name,
            "classes": list(source.class_names(task.name)),
        }
        for task in trained.algorithm.tasks
    ]
    learner = trained.algorithm.learner
    return {
        "tasks": tasks,
        "cells": cells,
        "inner_steps": learner.num_steps,
        "needs_support": not learner.supports_zero_shot or trained.algorithm.normalises_by_support,
    }
