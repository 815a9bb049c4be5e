"""Transformers of Hugging Face (Wolf et al., 2020, arXiv:1910.03771) as encoders of texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raymtl.encoders.texts.base import Advance, TextModel
from raymtl.encoders.texts.pooling import pooled
from raymtl.encoders.texts.quiet import quiet
from raymtl.encoders.texts.sentence_folder import SentenceFolder, read_sentence_folder
from raymtl.encoders.texts.settings import TextEncoder
from raymtl.types import UserError

LENGTHS = 8
"""Texts are padded to a multiple of so many tokens."""
TOKENS = 1024
"""Of a batch, about."""
TOKENIZERS = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "bpe.codes", "source.spm"),
)
"""Files of which a folder with a tokenizer has one."""
WITHOUT = "pooler."
"""A layer after the tokens, which many models are stored without and which is not used here."""
NO_LIMIT = 1_000_000
USUAL_TOKENS = 512
"""Where a model does not say how many it reads."""


class TransformerEncoder(TextModel):
    """The pooled vectors of a transformer.

    A text is padded to a length that follows from its own, and all texts of a batch have that
    length, so a vector does not depend on the texts beside it.
    """

    def __init__(self, network: Any, tokenizer: Any, folder: SentenceFolder) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.folder = folder
        self.max_tokens = folder.max_tokens
        self.size = self._encode([[0]]).shape[1]

    def vectors(self, texts: Sequence[str], advance: Advance) -> np.ndarray:
        ids = self.tokens(texts)
        lengths = np.array([-(-max(1, len(own)) // LENGTHS) * LENGTHS for own in ids])
        out = np.empty((len(texts), self.size), np.float32)
        for length in np.unique(lengths).tolist():
            rows = np.flatnonzero(lengths == length)
            for batch in np.array_split(rows, -(-len(rows) * length // TOKENS)):
                out[batch] = self._encode([ids[row] for row in batch.tolist()])
                advance(len(batch))
        return out

    def num_long(self, texts: Sequence[str]) -> int:
        most = self.max_tokens
        assert most is not None
        return sum(len(ids) > most for ids in self.tokens(texts, cut_off=False))

    def tokens(self, texts: Sequence[str], *, cut_off: bool = True) -> list[list[int]]:
        """The tokens of each text, by their numbers."""
        if self.folder.lower_case:
            texts = [text.lower() for text in texts]
        if not texts:
            return []
        with quiet():
            read = self.tokenizer(
                [self.folder.prompt + text for text in texts],
                truncation=cut_off,
                max_length=self.max_tokens,
                return_attention_mask=False,
            )
        ids: list[list[int]] = read["input_ids"]
        return ids

    def _encode(self, batch: Sequence[Sequence[int]]) -> np.ndarray:
        """The vectors [N, size] of the tokens of some texts."""
        longest = max(len(ids) for ids in batch)
        shape = (len(batch), -(-max(1, longest) // LENGTHS) * LENGTHS)
        ids, mask = torch.full(shape, self._padding()), torch.zeros(shape)
        for row, own in enumerate(batch):
            ids[row, : len(own)] = torch.tensor(own, dtype=torch.long)
            mask[row, : max(1, len(own))] = 1
        with torch.inference_mode():
            tokens = self.network(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            vectors = self._pooled(tokens.float(), mask)
        array: np.ndarray = vectors.numpy()
        return array

    def _pooled(self, tokens: Tensor, mask: Tensor) -> Tensor:
        vectors = pooled(tokens, mask, self.folder.poolings)
        for layer in self.folder.layers:
            vectors = layer(vectors)
        return vectors

    def _padding(self) -> int:
        padding = self.tokenizer.pad_token_id
        if padding is None:
            return 0
        return int(padding)


def load_transformer(folder: Path, encoder: TextEncoder, key: str) -> TransformerEncoder:
    """The model of a folder of transformers or sentence-transformers. Raises UserError."""
    loader = _Loader(folder, encoder, key)
    config = loader.config()
    tokenizer = loader.tokenizer()
    network = loader.network(config)
    loader.check_vocabulary(network, tokenizer)
    limit = _limit(network, config, tokenizer)
    return TransformerEncoder(network, tokenizer, loader.described(limit))


class _Loader:
    """Loads the parts of a model; `key` begins every error."""

    def __init__(self, folder: Path, encoder: TextEncoder, key: str) -> None:
        self.encoder = encoder
        self.key = key
        try:
            import transformers
        except ImportError as error:
            raise UserError(
                f"{key}.model: {encoder.model} needs the package transformers, got none that can "
                f"be imported ({error}). Install it by pip install 'raymtl[text]'."
            ) from None
        self.library: Any = transformers
        self.sentences = read_sentence_folder(folder, f"{key}.model")
        self.folder = self.sentences.transformer
        self._check_pooling()

    def error(self, text: str) -> UserError:
        return UserError(f"{self.key}.model: {self.folder}: {text}")

    def _check_pooling(self) -> None:
        given, own = self.encoder.pooled, self.sentences.poolings
        if given is not None and own and own != (given,):
            raise UserError(
                f"{self.key}.pooled: expected none, since {self.folder} says {' and '.join(own)}, "
                f"got {given}. Remove it."
            )

    def config(self) -> Any:
        """The settings of the network."""
        if not (self.folder / "config.json").is_file():
            raise self.error(
                "expected a folder of transformers or sentence-transformers, got one without "
                "config.json. Correct the path."
            )
        try:
            config = self.library.AutoConfig.from_pretrained(self.folder, **LOCAL)
        except Exception as error:  # of settings of any model
            raise self.error(
                f"expected a model of transformers, got settings that it does not read "
                f"({_first_line(error)}). Code of a model is never run; take another model."
            ) from None
        return config

    def tokenizer(self) -> Any:
        """What makes tokens of texts."""
        if not any((self.folder / name).is_file() for name in TOKENIZERS):
            raise self.error(
                "expected the files of a tokenizer, such as tokenizer.json, got none. Save the "
                "model's tokenizer into the folder."
            )
        try:
            with quiet():
                return self.library.AutoTokenizer.from_pretrained(self.folder, **LOCAL)
        except Exception as error:  # of files of any tokenizer
            raise self.error(
                f"expected a tokenizer that transformers reads, got another "
                f"({_first_line(error)}). Save the model's tokenizer into the folder."
            ) from None

    def network(self, config: Any) -> nn.Module:
        """The network with the weights of the folder."""
        if not [*self.folder.glob("*.safetensors"), *self.folder.glob("pytorch_model*.bin")]:
            raise self.error(
                "expected weights, model.safetensors, got none. Save the model into the folder."
            )
        kind = self._class(config)
        try:
            with quiet():
                network, report = kind.from_pretrained(
                    self.folder,
                    config=config,
                    dtype=torch.float32,
                    weights_only=True,
                    output_loading_info=True,
                    **LOCAL,
                )
        except Exception as error:  # of weights of any model
            raise self.error(
                f"expected weights that fit config.json, got others ({_first_line(error)}). "
                "Restore the files."
            ) from None
        self._check_weights(network, report)
        frozen: nn.Module = network.eval().requires_grad_(False)
        return frozen

    def _class(self, config: Any) -> Any:
        """The class of transformers for this model. Raises UserError for one that is no encoder."""
        from transformers.models.auto import modeling_auto

        kind = config.model_type
        if config.is_encoder_decoder:
            if kind in modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
                return self.library.AutoModelForTextEncoding
        elif self.sentences.poolings or kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            return self.library.AutoModel
        raise self.error(
            f"expected an encoder of texts, got a model of type {kind}, which is none. Take "
            "another model, or one in a folder of sentence-transformers that says its pooling."
        )

    def _check_weights(self, network: nn.Module, report: Any) -> None:
        missing = sorted(name for name in report["missing_keys"] if WITHOUT not in name)
        if missing:
            raise self.error(
                f"expected weights of {missing[0]}, got none ({len(missing)} are missing). "
                "Restore the files."
            )
        mismatched = list(report.get("mismatched_keys") or ())
        if mismatched:
            raise self.error(
                f"expected weights that fit config.json, got others of {mismatched[0]}. Restore "
                "the files."
            )
        for name, value in network.named_parameters():
            if not bool(value.isfinite().all()):
                raise self.error(
                    f"expected finite numbers, got others in {name}. Restore the files."
                )

    def check_vocabulary(self, network: Any, tokenizer: Any) -> None:
        """Raises UserError for a tokenizer of more tokens than the network knows."""
        known = network.get_input_embeddings().num_embeddings
        if len(tokenizer) > known:
            raise self.error(
                f"expected a tokenizer of at most {known} tokens, which the network knows, got one "
                f"of {len(tokenizer)}. Save the model's own tokenizer into the folder."
            )

    def described(self, limit: int) -> SentenceFolder:
        """The folder with its pooling and its number of tokens, for a network that reads at most
        so many.
        """
        asked = self.encoder.max_tokens
        if asked is not None and asked > limit:
            raise UserError(
                f"{self.key}.max_tokens: expected at most {limit}, which {self.folder} reads, got "
                f"{asked}. Lower it."
            )
        tokens = asked or min(limit, self.sentences.max_tokens or limit)
        poolings = self.sentences.poolings or (self.encoder.pooled or "mean",)
        return self.sentences._replace(poolings=poolings, max_tokens=tokens)


LOCAL = {"local_files_only": True, "trust_remote_code": False}


def _limit(network: nn.Module, config: Any, tokenizer: Any) -> int:
    """How many tokens the network reads: what it has places for, and what the tokenizer says."""
    limits = [int(tokenizer.model_max_length)]
    places = [
        module.num_embeddings - (module.padding_idx + 1 if module.padding_idx is not None else 0)
        for name, module in network.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]
    if places:
        limits += places
    elif getattr(config, "max_position_embeddings", None):
        limits.append(int(config.max_position_embeddings))
    least = min(limits)
    if least > NO_LIMIT:
        return USUAL_TOKENS
    return least


def _first_line(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200]
