"""What is said of sources: notes and errors that several of them have."""

from raymtl.storage.notes import Note
from raymtl.types import Spec, UserError


def every_episode_is_new(source: str) -> Note:
    """The note on a class of sources that loads data and does not say what they are samples of."""
    text = (
        "its data are finite, but the class does not define `populations`, so intervals of scores "
        "count every episode as a new one and are too narrow"
    )
    return Note(place=f"source {source}", text=text, key="data.name")


def made_when_drawn(source: Spec) -> UserError:
    """The key by which the inputs of episodes are new ones each time, and what to do."""
    got, advice = f"data.name: {getattr(source, 'name', '?')}", "Choose other data"
    if getattr(source, "augment", None):
        got, advice = "data.augment", "Turn it off"
    return UserError(
        f"encoder.frozen: expected data whose inputs are the same in every episode, got {got}, by "
        f"which they are made when an episode is drawn. {advice}, or keep stages constant by "
        "encoder.frozen_stages."
    )


def has_no_rows(source: Spec) -> UserError:
    """The error about rows of a source that only has episodes of a size of their own."""
    return UserError(
        f"train.batch_size: expected none with data.name: {getattr(source, 'name', '?')}, whose "
        "episodes have a size of their own, got one. Set train.meta_batch in its place."
    )


def unresolved() -> UserError:
    """The error about a source that is used before its files were read."""
    return UserError(
        "data: expected a source whose files have been read, got its configuration alone. Call its "
        "resolve(), or that of the Experiment; raymtl.load does."
    )
