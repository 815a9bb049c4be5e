"""The comparison with other libraries, on tiny sizes."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers.report import MARK, tables
from benchmarks.peers.subject import PARITY, Setting, Subject, parity
from benchmarks.peers.timing import Times, Way, in_turns

SUBJECTS = {subject.name: subject for subject in peers.all_subjects()}
COMPARED = [
    subject
    for name, subject in SUBJECTS.items()
    if subject.gradients is not None and not re.search("width 64|1000 tasks$|resnet18", name)
]
SINUSOID = "sinusoid maml with 1 step on 25 tasks"


def test_a_run_without_other_libraries_fills_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"# Performance\n\nWords by hand.\n\n{MARK}\nAn earlier table.\n")
    output = tmp_path / "peers.parquet"
    words = [SINUSOID, "--ours", "--quick", "--rounds", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["peers", *words, "--page", str(page)])
    monkeypatch.setattr(peers, "prepare_process", lambda: None)  # this process runs other tests
    peers.main()

    rows = pq.read_table(output).to_pylist()
    assert all(row["way"].startswith("raymtl") for row in rows)
    (base,) = [row for row in rows if row["base"]]
    assert base["ratio"] == 1
    assert all(0 < row["ms_low"] <= row["ms"] <= row["ms_high"] for row in rows)
    assert base["share"] == pytest.approx(base["gigaflop"] / base["ms"] * 1000 / base["gflops"])
    text = page.read_text()
    assert text.startswith("# Performance\n\nWords by hand.")
    assert "An earlier table" not in text
    assert f"**{base['way']}**" in text


WITHOUT = """
import sys
for name in ("pyarrow", "tensorboard", "safetensors", "sklearn", "rich", "typer", "ray", "optuna", "torchvision",
             "higher", "torchopt", "torchjd", "jax"):
    sys.modules[name] = None  # importing it fails
from benchmarks.peers import __main__ as peers
peers.prepare_process = lambda: None
peers.main()
"""


@pytest.mark.slow
def test_raymtl_alone_needs_torch_alone() -> None:
    """Where nothing can be written, the rows are printed."""
    words = [SINUSOID, "--ours", "--quick", "--rounds", "1"]
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT, *words], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"raymtl (vmap|loop), replay", ended.stdout)  # whichever was faster
    assert "nothing is written" in ended.stdout


def test_a_second_run_replaces_the_rows_of_its_subject_alone(tmp_path: Path) -> None:
    output = tmp_path / "peers.parquet"
    given = peers.arguments(["--output", str(output)])

    def row(subject: str, ms: float) -> dict[str, object]:
        return {"subject": subject, "ms": ms}

    last, first = list(SUBJECTS)[-1], next(iter(SUBJECTS))
    peers.keep_rows(given, [row(last, 1.0)])
    peers.keep_rows(given, [row(first, 2.0)])
    peers.keep_rows(given, [row(last, 3.0)])
    assert pq.read_table(output).to_pylist() == [row(first, 2.0), row(last, 3.0)]


@pytest.mark.slow
@pytest.mark.parametrize("subject", COMPARED, ids=lambda subject: subject.name)
def test_every_library_computes_the_same_gradient(subject: Subject) -> None:
    """In float64; of the libraries that are installed. Plain torch is always one of the learners'."""
    gaps = parity(subject, Setting())
    assert "torch" in gaps or "torchjd" in gaps
    assert max(gaps.values()) <= PARITY, gaps


def test_a_wrong_gradient_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = SUBJECTS[SINUSOID]
    assert subject.gradients is not None
    right = dict(subject.gradients(Setting()))

    def wrong(setting: Setting) -> Mapping[str, object]:
        return {**right, "torch": [1.001 * each for each in right["torch"]]}

    with pytest.raises(SystemExit, match="torch"):
        peers.measured(subject._replace(gradients=wrong), Setting(), 1)  # type: ignore[arg-type]


def test_the_summary_names_the_fastest_other_library() -> None:
    def row(way: str, ms: float, base: bool = False) -> dict[str, Any]:
        return {
            "subject": "a step",
            "way": way,
            "base": base,
            "unit": "task",
            **Times(ms, ms, ms, ms / 2, ms / 2, ms / 2, 50.0)._asdict(),
            "share": None,
            "peak_mib": None,
            **dict.fromkeys(("torch", "machine", "libraries", "rounds"), "x"),
        }

    rows = [row("raymtl loop", 2.0, True), row("raymtl loop, compile", 1.0)]
    text = tables([*rows, row("slow", 9.0), row("fast", 3.0)])
    assert "| a step | 2 | 1.00 | fast | 1.50 | 3.00 (loop, compile) |" in text
    assert "| slow | 9 | 4.50 (4.50 to 4.50) |" in text


def test_ratios_are_to_the_base_of_the_same_round() -> None:
    milliseconds = iter([1.0, 10.0, 1000.0, 100.0])
    fast = Way(lambda: None, clock=lambda: next(milliseconds))
    slow = Way(lambda: None, clock=lambda: next(milliseconds))
    # The second round begins with the other way.
    found = in_turns({"fast": fast, "slow": slow}, "fast", 2, "cpu")
    assert found["slow"].ratio == 10
    assert found["slow"].ms == pytest.approx((10 + 1000) / 2)
