"""How a merged model came about: the file merged.json of its folder."""

from collections.abc import Iterator
from pathlib import Path

from raymtl.storage import formats
from raymtl.storage.notes import Note

MERGED = "merged.json"


def merged_notes(folder: Path) -> Iterator[Note]:
    """The note on the coefficients that a merged model was given; none of other models."""
    if not (folder / MERGED).exists():
        return
    record = formats.read_json(folder / MERGED)
    chosen = " and ".join(f"{name} {value:g}" for name, value in record["coefficients"].items())
    text = (
        f"the single-task models are merged with {chosen}, the best by val.score "
        f"({record['val.score']:.4g}) of {len(record['tried'])} choices that were tried"
    )
    yield Note(place="merging", text=text, key="tune.baselines")
