"""Notes travel from the files to the terminal, to summary.json and to the report, with the key that changes them."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from raymtl.data.sources.combined import Several
from raymtl.evaluation.baselines import notes_of_models
from raymtl.reporting.html import write_report
from raymtl.reporting.notes import MOST_LINES, print_notes
from raymtl.storage import formats
from raymtl.storage.notes import Note, pack, unpack
from tests.data.test_files_pictures import plain_pictures
from tests.reporting.test_html import HOSTILE, make_run

ZIP = Note(place="column 'zip'", text="left out, since almost all values differ", key="data.inputs")


def test_packed_notes_are_unpacked_as_they_were() -> None:
    notes = (ZIP, Note(place="ü", text='"quoted"\nand a new line'))
    assert unpack(pack(notes)) == notes
    assert unpack(pack(())) == ()


def test_parts_notes_name_the_part() -> None:
    note = Note(place="pictures", text="see data.tasks.a", key="data.max_corrupt").of_part(
        "lamps", "data.parts.lamps"
    )
    assert (
        str(note) == "lamps: pictures: see data.parts.lamps.tasks.a (data.parts.lamps.max_corrupt)"
    )


@pytest.mark.parametrize(
    ("number", "lines"), [(0, 0), (MOST_LINES, MOST_LINES), (MOST_LINES + 5, MOST_LINES)]
)
def test_some_notes_are_printed_before_training(
    number: int, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """And where the others are."""
    notes = [ZIP.model_copy(update={"place": f"column {i}"}) for i in range(number)]
    print_notes(Console(), notes, "raymtl data inspect c.yaml")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == lines
    if number > MOST_LINES:
        assert printed[-1] == f"{number - MOST_LINES + 1} more notes: raymtl data inspect c.yaml"
    print_notes(Console(), notes)
    assert len(capsys.readouterr().out.splitlines()) == number


def test_several_names_the_part_of_a_note(tmp_path: Path) -> None:
    parts = {}
    for name in ("lamps", "suns"):
        root = plain_pictures(tmp_path / name, 40)
        (root / "dark" / "0.png").write_bytes(b"no picture")
        tasks = {"light": {"column": "folder"}}
        parts[name] = {
            "name": "files",
            "path": str(root),
            "size": 4,
            "tasks": tasks,
            "max_corrupt": 0.1,
        }
    source = Several.model_validate({"name": "several", "parts": parts}).resolve()
    notes = source.notes(source.load())
    assert [note.place for note in notes] == ["lamps: pictures", "suns: pictures"]
    assert notes[1].key == "data.parts.suns.max_corrupt"


def test_other_models_notes_name_the_model(tmp_path: Path) -> None:
    """None is repeated."""
    own, same, other = (
        {"place": "task 'a'", "text": text, "key": None}
        for text in ("one class", "one class", "R2")
    )
    folders = {}
    for name, notes in (("winner", [own]), ("default", [same, other]), ("joint", None)):
        folders[name] = tmp_path / name
        formats.write_json(
            folders[name] / "metrics.json", {} if notes is None else {"notes": notes}
        )
    assert [str(note) for note in notes_of_models(folders)] == [
        "task 'a': one class",
        "default, task 'a': R2",
    ]


def test_the_report_shows_the_notes_of_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", command="train")
    assert 'id="notes"' not in write_report(run).read_text()
    summary = json.loads((run / "summary.json").read_text())
    hostile = ZIP.model_copy(update={"place": HOSTILE})
    formats.write_json(
        run / "summary.json", summary | {"notes": [ZIP.model_dump(), hostile.model_dump()]}
    )
    page = write_report(run).read_text()
    assert 'id="notes"' in page and ZIP.text in page and "data.<wbr>inputs" in page
    assert HOSTILE not in page
