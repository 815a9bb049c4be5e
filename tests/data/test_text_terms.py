"""Columns of text as TF-IDF; scikit-learn's own objects are the oracle, in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from raymtl.config import Experiment
from raymtl.config.experiment import parse
from raymtl.data import Files
from raymtl.data.tables.fit_blocks import fit_all_rows
from raymtl.data.tables.new_rows import read_unseen
from raymtl.data.tables.text_terms import (
    TextRows,
    encode_terms,
    packed_counts,
    sum_terms,
    unpacked_counts,
)
from raymtl.encoders.front import front_of
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import meta_gradient
from raymtl.step.traced import Tracer
from raymtl.types import UserError
from tests.conftest import episodes_of
from tests.data.texts import WORDS, sentences

ROWS, PLACES = 90, 64


def write(path: Path, texts: list[str | None], **more: list[Any]) -> Path:
    number = len(texts)
    split = ["train"] * (number // 2) + ["val"] * (number // 4)
    columns = {
        "note": texts,
        "x": np.linspace(-1, 1, number),
        "y": [float(i % 7) for i in range(number)],
        "split": split + ["test"] * (number - len(split)),
        **more,
    }
    pq.write_table(pa.table(columns), path, row_group_size=15)
    return path


def files(path: Path, **values: Any) -> Files:
    settings: dict[str, Any] = {"text_size": PLACES, "inputs": {"note": "text", "x": "number"}}
    settings |= {"split": {"column": "split"}, **values}
    return Files(path=str(path), tasks={"y": {}}, **settings).resolve()


def dense(source: Files, inputs: np.ndarray) -> np.ndarray:
    """What the encoders read."""
    front = front_of(source.input_shape, source.slots)
    assert front is not None
    read: np.ndarray = front(torch.from_numpy(inputs)).numpy()
    return read


def by_scikit_learn(train: list[str | None], texts: list[str | None], places: int) -> np.ndarray:
    """Signed hashing by its vectorizers; weights by its transformer, which knows no signs."""
    vectorizers = [
        HashingVectorizer(
            ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", norm=None, n_features=places
        ),
        HashingVectorizer(
            analyzer="char_wb", ngram_range=(2, 5), lowercase=False, norm=None, n_features=places
        ),
    ]

    def counts(of: list[str | None]) -> np.ndarray:
        read = [text or "" for text in of]
        added: np.ndarray = sum(one.transform(read).toarray() for one in vectorizers)
        return added

    transformer = TfidfTransformer(sublinear_tf=True).fit(np.abs(counts(train)))
    signed = counts(texts)
    weighed: np.ndarray = np.sign(signed) * transformer.transform(np.abs(signed)).toarray()
    return weighed


@pytest.mark.parametrize("places", [PLACES, 2**14])
def test_weights_are_those_of_scikit_learn(tmp_path: Path, places: int) -> None:
    texts = [" ".join(WORDS), *sentences(ROWS)[1:]]  # the longest is for training
    source = files(write(tmp_path / "t.parquet", texts), text_size=places)
    read = dense(source, source.load()["inputs"])
    expected = by_scikit_learn(texts[: ROWS // 2], texts, places)
    np.testing.assert_allclose(read[:, :-1], expected, rtol=1e-6, atol=1e-7)
    assert source.encoder_shape == (places + 1,) and read.shape[1] == places + 1


def test_characters_keep_their_case_and_words_do_not(tmp_path: Path) -> None:
    texts = ["c1ccccc1", "C1CCCCC1", "This film is bad", "this film is Bad", "", "a"] * 4
    source = files(write(tmp_path / "t.parquet", list(texts)), text_size=2**14)
    rings = dense(source, source.load()["inputs"])[:2, :-1]
    prose = dense(source, source.load()["inputs"])[2:4, :-1]
    assert rings[0] @ rings[1] < 0.3 < 0.5 < prose[0] @ prose[1] < 0.99


def test_terms_of_least_weight_are_left_out(tmp_path: Path) -> None:
    """A note says how many texts have more; rows keep the length 1."""
    texts = sentences(ROWS)
    path = write(tmp_path / "t.parquet", texts)
    source = files(path, text_size=2**14, text_terms=20)
    assert source.input_shape == (41,)
    read = dense(source, source.load()["inputs"])[:, :-1]
    every = by_scikit_learn(texts[: ROWS // 2], texts, 2**14)
    for row, full in zip(read, every, strict=True):
        chosen = np.argsort(-np.abs(full), kind="stable")[:20]
        shortened = np.zeros_like(full)
        shortened[chosen] = full[chosen]
        shortened /= max(np.linalg.norm(shortened), 1e-9)
        np.testing.assert_allclose(np.sort(np.abs(row)), np.sort(np.abs(shortened)), atol=1e-6)
        assert np.count_nonzero(row) <= 20
    (note,) = [note for note in source.found.notes if note.key == "data.text_terms"]
    share = np.mean((every[: ROWS // 2] != 0).sum(1) > 20)
    assert note.place == "column 'note'" and f"{share:.1%} of the texts" in note.text
    assert not [n for n in files(path, text_size=2**14).found.notes if n.key == "data.text_terms"]


def test_rows_do_not_depend_on_those_beside_them() -> None:
    """To the bit, as blocks, streams and new rows need it."""
    texts = pa.array(sentences(ROWS), pa.string())
    sums = sum_terms(texts, PLACES)
    rows = TextRows(np.array(sums.documents), sums.num_rows)
    together = np.empty((ROWS, 2 * 30), np.float32)
    encode_terms(texts, rows, together)
    for start in range(0, ROWS, 7):
        own = texts.slice(start, 7)
        alone = np.empty((len(own), 2 * 30), np.float32)
        encode_terms(own, rows, alone)
        np.testing.assert_array_equal(alone, together[start : start + 7])
    assert sums + sum_terms(texts.slice(0, 0), PLACES) == sums
    parts = [sum_terms(texts.slice(start, 40), PLACES) for start in (0, 40, 80)]
    assert parts[2] + parts[0] + parts[1] == sums == parts[0] + (parts[1] + parts[2])


def test_a_stream_becomes_what_is_in_memory(tmp_path: Path) -> None:
    more: dict[str, list[Any]] = {
        "z": sentences(600, seed=1),
        "split": ["train", "val", "test"] * 200,
    }
    path = write(tmp_path / "t.parquet", sentences(600, most=2), **more)
    inputs = {"note": "text", "z": "text", "x": "number"}
    in_memory = files(path, inputs=inputs, text_size=40)
    sampled = files(path, inputs=inputs, text_size=40, in_memory_mb=0.03, fit_rows=15)
    assert sampled.is_streamed and sampled.found.columns != in_memory.found.columns
    streamed = fit_all_rows(sampled)
    assert streamed.found.columns == in_memory.found.columns
    assert (streamed.input_shape, streamed.slots) == (in_memory.input_shape, in_memory.slots)
    arrays, held_out = in_memory.load(), streamed.load()
    outside = arrays["inputs"][arrays["side"] != 0]
    by_row = np.lexsort(held_out["inputs"].T), np.lexsort(outside.T)
    np.testing.assert_array_equal(held_out["inputs"][by_row[0]], outside[by_row[1]])


def test_new_rows_are_weighed_by_the_rows_for_training(tmp_path: Path) -> None:
    """Also where one of them is longer than any row for training, or has no text at all."""
    texts = sentences(ROWS)
    source = files(write(tmp_path / "t.parquet", texts), text_size=2**12)
    longer = [" ".join(text or "" for text in texts), None, texts[3]]
    pq.write_table(pa.table({"note": longer, "x": [0.0] * 3}), tmp_path / "new.parquet")
    found = read_unseen(source, str(tmp_path / "new.parquet")).inputs
    expected = by_scikit_learn(texts[: ROWS // 2], [texts[3]], 2**12)
    np.testing.assert_allclose(dense(source, found)[2:, :-1], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
        np.linalg.norm(dense(source, found)[:, :-1], axis=1), [1, 0, 1], rtol=1e-5
    )


def learning(path: Path) -> Experiment:
    return parse(
        {
            "data": {
                "name": "files",
                "path": str(path),
                "text_size": PLACES,
                "inputs": {"note": "text", "x": "number"},
                "tasks": {"y": {}, "kind": {"kind": "classification"}},
                "shots": 4,
                "queries": 5,
            },
            "encoder": {"name": "mlp", "hidden": [6]},
            "learner": {"name": "maml", "inner_steps": 2, "inner_lr": 0.1},
        }
    ).resolve()


@pytest.mark.usefixtures("float64")
def test_traced_steps_equal_plain_steps(tmp_path: Path) -> None:
    """Through inner steps, by vmap and in a loop."""
    kinds = [("a", "b", "c")[i % 3] for i in range(ROWS)]
    chosen = learning(write(tmp_path / "t.parquet", sentences(ROWS), kind=kinds))
    algorithm = chosen.build()
    params = algorithm.init_params()
    episodes = episodes_of(chosen, chosen.data.load(), step=0)
    expected = meta_gradient(algorithm, params, episodes, execution=ExecutionConfig("loop"))
    assert max(float(own.abs().max()) for own in expected.grads.values()) > 0
    for execution in (ExecutionConfig("vmap"), ExecutionConfig("vmap", tracer=Tracer("replay"))):
        meta = meta_gradient(algorithm, params, episodes, execution=execution)
        torch.testing.assert_close(meta.losses, expected.losses)
        torch.testing.assert_close(meta.grads, expected.grads)


def test_counts_survive_packing() -> None:
    counts = np.array([0, 1, 2**32 - 1, 7])
    np.testing.assert_array_equal(unpacked_counts(packed_counts(counts)), counts)
    with pytest.raises(ValueError, match="expected packed counts"):
        unpacked_counts("AAAA")


def test_bad_texts_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", [*[None] * 60, *sentences(30)])
    with pytest.raises(UserError, match=r"t.parquet.*'note': expected texts .* for training, got"):
        files(path)
    for size in (15, 2**24):
        with pytest.raises(UserError, match=r"data.text_size: "):
            parse({"data": {"name": "files", "path": str(path), "text_size": size}})


def test_bags_of_words_of_earlier_versions_are_refused(tmp_path: Path) -> None:
    source = files(write(tmp_path / "t.parquet", sentences(ROWS)))
    saved = source.model_dump(mode="json")
    note = saved["fitted"]["columns"][0]
    saved["fitted"]["columns"][0] = {"column": "note", "role": "text", "size": 64}
    assert note["places"] == PLACES
    with pytest.raises(UserError, match=r"data.fitted: column 'note'.*earlier version.*Train"):
        Files.model_validate(saved)
