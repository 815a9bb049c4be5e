"""Columns of texts with a pre-trained encoder: their numbers, their notes, new rows, and other weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymtl.config import Experiment, load, parse
from raymtl.data import Files
from raymtl.data.episodes import build_episodes, on_device
from raymtl.data.inspection import inspect
from raymtl.data.tables.new_rows import read_unseen
from raymtl.encoders import MLPSpec
from raymtl.encoders.texts import opened
from raymtl.encoders.texts.settings import TextEncoder
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import UserError
from tests.data.own import write_csv, write_parquet
from tests.encoders.tiny_texts import SIZE, bert, bert_folder
from tests.narrowing import present

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _nothing_opened() -> Iterator[None]:
    """As in a process that has just started."""
    forget()
    yield
    forget()


def forget() -> None:
    opened._opened.clear()
    opened._vectors.clear()


def reviews(rows: int = 90) -> dict[str, list[Any]]:
    """Texts of two moods with a price; every ninth text is missing."""
    rng = np.random.default_rng(0)
    good = rng.random(rows) < 0.5
    words = np.array(["film", "book", "cheap", "dear", "xyz"])
    texts = [
        f"{'good' if mood else 'bad'} {' '.join(words[rng.integers(0, 5, rng.integers(1, 6))])}"
        for mood in good
    ]
    return {
        "review": [None if row % 9 == 0 else text for row, text in enumerate(texts)],
        "price": rng.normal(size=rows).tolist(),
        "mood": ["good" if mood else "bad" for mood in good],
    }


def source_of(path: Path, model: Path, **values: Any) -> Files:
    text = {"role": "text", "encoder": {"model": str(model), **values.pop("encoder", {})}}
    inputs = values.pop("inputs", {"review": text, "price": "number"})
    tasks = {"mood": {"kind": "binary"}}
    return Files(path=str(path), inputs=inputs, tasks=tasks, **values)


def test_vectors_stand_beside_other_columns_in_one_scale(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "t.parquet", reviews())
    source = source_of(table, bert_folder(tmp_path / "m")).resolve()
    assert source.input_shape == (SIZE + 1,)
    arrays = source.load()
    inputs = arrays["inputs"]
    train = inputs[arrays["side"] == 0]
    missing = np.array([text is None for text in reviews()["review"]])
    assert (inputs[missing, :SIZE] == 0).all() and (inputs[missing, SIZE] != 0).all()
    numbers = train[~missing[arrays["side"] == 0], :SIZE]
    assert abs(numbers.mean()) < 1e-5 and abs(numbers.std() - 1) < 1e-5


def test_numbers_are_vectors_less_one_mean_over_one_spread(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "t.parquet", reviews())
    source = source_of(table, bert_folder(tmp_path / "m")).resolve()
    column = source.found.columns[0]
    texts = [text for text in reviews()["review"] if text is not None]
    vectors = opened.text_vectors(present(column.encoder), texts, "k")
    rows = [row for row, text in enumerate(reviews()["review"]) if text is not None]
    expected = (vectors - column.mean) / column.std
    np.testing.assert_allclose(source.load()["inputs"][rows, :SIZE], expected, rtol=1e-5, atol=1e-6)


def test_a_pattern_gives_an_encoder_too(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "t.parquet", {**reviews(), "re2": reviews()["review"]})
    text = {"role": "text", "encoder": {"model": str(bert_folder(tmp_path / "m"))}}
    source = source_of(table, tmp_path / "m", inputs={"re*": text}).resolve()
    assert [column.column for column in source.found.columns] == ["review", "re2"]
    assert source.input_shape == (2 * SIZE,)


def test_findings_are_written_and_read_again(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", reviews())
    source = source_of(table, bert_folder(tmp_path / "m")).resolve()
    again = Files.model_validate_json(source.model_dump_json())
    assert again == source and again.is_resolved


def test_a_configuration_names_a_folder_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "t.csv", reviews())
    bert_folder(tmp_path / "models/m")
    Path("own.yaml").write_text(
        "data:\n  name: files\n  path: t.csv\n  inputs:\n"
        "    review: {role: text, encoder: {model: models/m, pooled: cls}}\n    price: number\n"
        "  tasks: {mood: {}}\nencoder: {name: mlp, hidden: [8]}\n"
    )
    experiment = load(Path("own.yaml"))
    assert isinstance(experiment.data, Files)
    encoder = present(experiment.data.found.columns[0].encoder)
    assert encoder.asked == TextEncoder(model=f"{tmp_path}/models/m", pooled="cls")


def test_an_outer_step_is_finite(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "t.parquet", reviews())
    source = source_of(table, bert_folder(tmp_path / "m")).resolve()
    experiment = Experiment(data=source, encoder=MLPSpec(hidden=(8,)))
    (episodes,), _ = build_episodes(
        experiment.data, source.load(), seed=0, split="train", step=0, indices=range(2)
    )
    algorithm = experiment.build()
    meta = meta_gradient(algorithm, algorithm.init_params(), on_device(episodes, "cpu"))
    assert all(bool(gradient.isfinite().all()) for gradient in meta.grads.values())


def test_long_texts_are_noted_with_the_key(tmp_path: Path) -> None:
    content = reviews()
    content["review"][1] = content["review"][2] = "good " * 50
    table = write_parquet(tmp_path / "t.parquet", content)
    source = source_of(table, bert_folder(tmp_path / "m")).resolve()
    (note,) = (note for note in source.found.notes if "tokens" in note.text)
    assert note.key == "data.inputs.review.encoder.max_tokens"
    assert note.text.startswith("2 of 80 texts have more than the 40 tokens")


def test_new_rows_have_the_numbers_of_the_same_texts(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "t.parquet", reviews())
    source = source_of(table, bert_folder(tmp_path / "m")).resolve()
    forget()
    new = {key: values[5:12] for key, values in reviews().items()}
    unseen = read_unseen(source, str(write_csv(tmp_path / "new.csv", new)))
    assert (unseen.inputs == source.load()["inputs"][5:12]).all()


def test_a_stream_has_the_numbers_of_rows_in_memory(tmp_path: Path) -> None:
    content = {**reviews(), "split": ["train", "train", "val", "test", "train"] * 18}
    table = write_parquet(tmp_path / "t.parquet", content, row_group_size=10)
    source = source_of(table, bert_folder(tmp_path / "m")).resolve()
    streamed = source_of(table, tmp_path / "m", in_memory_mb=2e-3, fit_rows=1000).resolve()
    assert streamed.is_streamed and not source.is_streamed
    assert streamed.found.columns == source.found.columns
    rows = {row.tobytes() for row in source.load()["inputs"]}
    assert {row.tobytes() for row in streamed.load()["inputs"]} <= rows


def test_a_run_refuses_other_weights_and_a_folder_that_is_gone(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "t.parquet", reviews())
    folder = bert_folder(tmp_path / "m")
    source = source_of(table, folder).resolve()
    bert(seed=1).save_pretrained(folder)
    forget()
    with pytest.raises(UserError, match="by which this run was made, got others"):
        source.load()
    folder.rename(tmp_path / "gone")
    with pytest.raises(UserError, match="where there is no folder"):
        read_unseen(source, str(table))


def test_an_inspection_says_what_makes_the_vectors(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "t.parquet", reviews())
    report, _ = inspect(source_of(table, bert_folder(tmp_path / "m")), seed=0)
    first = report["columns"][0]
    assert first["numbers"] == SIZE and first["normalised_by"].startswith(f"vector of {tmp_path}/m")


@pytest.mark.parametrize(
    "text, words",
    [
        ({"role": "text"}, "data.inputs.review.encoder: expected a value, got none"),
        ({"role": "number", "encoder": {"model": "m"}}, "data.inputs.review.role: expected 'text'"),
        (
            {"role": "text", "encoder": {"model": "m", "modle": "m"}},
            "data.inputs.review.encoder.modle",
        ),
        ({"role": "text", "encoder": {"model": "m", "pooled": "max"}}, "encoder.pooled: expected"),
        ("txt", "data.inputs.review: expected 'number'"),
    ],
)
def test_a_mistake_in_the_longer_form_names_its_key(tmp_path: Path, text: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse({"data": {"name": "files", "path": "t.csv", "inputs": {"review": text}}})


def test_a_model_at_a_url_is_refused(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "t.parquet", reviews())
    with pytest.raises(UserError, match=r"encoder.model: expected a folder of this machine"):
        source_of(table, Path("x"), encoder={"model": "s3://bucket/model"}).resolve()
