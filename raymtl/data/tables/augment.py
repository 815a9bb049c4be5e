"""`data.augment`: pictures for training, changed at random together with their labels.

What is drawn depends on the episode's own generator alone, so an episode is the same whoever builds
it. Pictures for validation and testing, and those of `adapt`, are never changed.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from raymtl.data.draws import Draws
from raymtl.data.tables.changes import (
    Change,
    Coloured,
    Cropped,
    Example,
    Flipped,
    changed,
)
from raymtl.data.tables.mixup import mixed
from raymtl.data.tables.trivial_augment import draw_operations
from raymtl.tasks.maps import MapKind
from raymtl.types import Batch, Episode, Spec, Task, UserError


class Augment(Spec):
    """How pictures for training are changed at random, in the order of these keys.

    Every picture of an episode draws its own changes. Boxes, masks, depth and normals change along
    with their pictures. An example: `augment: {flip: true, crop: 0.5, colour: 0.4}`.
    """

    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The least share of a picture's area that is cut out and enlarged again; 1 keeps all of it."""
    flip: bool = False
    """Whether half of the pictures are mirrored, left to right."""
    trivial: bool = False
    """Whether each picture goes through one operation of TrivialAugment (arXiv:2103.10158)."""
    colour: Annotated[float, Field(ge=0, le=1)] = 0.0
    """By how much brightness, contrast and saturation change: by factors from 1 - this to
    1 + this.
    """
    mixup: NonNegativeFloat = 0.0
    """The alpha of mixup (arXiv:1710.09412) of the query examples of an episode; 0 mixes none."""

    @property
    def changes_pictures(self) -> bool:
        """Whether pictures change one by one."""
        return self.crop < 1 or self.flip or self.trivial or self.colour > 0


def check(augment: Augment, is_image: bool, tasks: Sequence[Task]) -> None:
    """Raises UserError for inputs that are no pictures, and for labels that cannot change along."""
    if not is_image:
        raise UserError(
            "data.augment: expected inputs that are pictures, got numbers. Leave it away."
        )
    for task in tasks:
        if augment.mixup and task.is_dense:
            raise UserError(
                f"data.augment.mixup: expected labels that can be averaged, got task '{task.name}' "
                f"of kind {task.kind}. Leave data.augment.mixup away."
            )
        if augment.trivial and isinstance(task.kind, MapKind) and task.kind.turns_with_view:
            raise UserError(
                "data.augment.trivial: expected no labels that turn with the view, got task "
                f"'{task.name}' of kind {task.kind}. Leave data.augment.trivial away."
            )


def augmented(augment: Augment, episode: Episode, tasks: Sequence[Task], draws: Draws) -> Episode:
    """The episodes [E, N, ...] with changed pictures and labels."""
    support, query = (
        _changed_batch(augment, batch, tasks, draws) for batch in (episode.support, episode.query)
    )
    if augment.mixup:
        query = mixed(query, tasks, augment.mixup, draws)
    return Episode(support, query)


def _changed_batch(augment: Augment, batch: Batch, tasks: Sequence[Task], draws: Draws) -> Batch:
    """Every picture [E, N, C, H, W] with its labels, changed."""
    pictures = batch.inputs
    assert isinstance(pictures, Tensor)
    if not augment.changes_pictures:
        return batch
    kinds = {task.name: task.kind for task in tasks if task.is_dense}
    num_episodes, number = pictures.shape[:2]
    flat = pictures.flatten(0, 1).clone()
    labels = {name: batch.targets[name].flatten(0, 1).clone() for name in kinds}
    plan = _plan(augment, tuple(pictures.shape[-2:]), number, draws)
    for row, changes in enumerate(plan):
        example = Example(flat[row], {name: values[row] for name, values in labels.items()})
        found = changed(example, changes, kinds)
        flat[row] = found.picture
        for name, values in found.labels.items():
            labels[name][row] = values
    shape = (num_episodes, number)
    targets = {name: values.unflatten(0, shape) for name, values in labels.items()}
    return batch._replace(inputs=flat.unflatten(0, shape), targets={**batch.targets, **targets})


def _plan(
    augment: Augment, size: tuple[int, ...], number: int, draws: Draws
) -> Iterator[list[Change]]:
    """The changes of every picture, `number` of each episode, an episode after another."""
    columns: list[list[Change]] = []
    if augment.crop < 1:
        columns.append(_crops(augment.crop, size, number, draws))
    if augment.flip:
        columns.append([Flipped(own) for own in draws.coins(number).reshape(-1).tolist()])
    if augment.trivial:
        columns.append(draw_operations(number, draws))
    if augment.colour:
        least, most = 1 - augment.colour, 1 + augment.colour
        factors = draws.uniform(least, most, number, 3).reshape(-1, 3)
        columns.append([Coloured(*own) for own in factors.tolist()])
    return (list(changes) for changes in zip(*columns, strict=True))


def _crops(least: float, size: tuple[int, ...], number: int, draws: Draws) -> list[Change]:
    """Parts of pictures with the proportions of the whole, anywhere in them."""
    scales = np.sqrt(draws.uniform(least, 1, number))
    heights, widths = (np.maximum(1, np.rint(scales * side)).astype(int) for side in size)
    tops, lefts = (
        (draws.uniform(0, 1, number) * (side - own + 1)).astype(int)
        for side, own in zip(size, (heights, widths), strict=True)
    )
    columns = (part.reshape(-1).tolist() for part in (tops, lefts, heights, widths))
    return [Cropped(*own) for own in zip(*columns, strict=True)]
