"""Small transformers with random weights and tokenizers, in folders as users have them."""

import string
from pathlib import Path
from typing import Any

import torch

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["good", "bad", "cheap", "dear", "book", "film"],
)
VOCABULARY = (
    *WORDS,
    *string.ascii_lowercase,
    *(f"##{letter}" for letter in string.ascii_lowercase),
)
TEXTS = ("good book", "bad film", "cheap", "a dear book and a bad film", "good " * 20)
SIZE = 16
PLACES = 40


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of word pieces."""
    import transformers

    library: Any = transformers
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    library.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)


def bert(seed: int = 0, **settings: Any) -> Any:
    """A network with random weights."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    usual = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": SIZE,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": PLACES,
    }
    network: Any = BertModel(BertConfig(**{**usual, **settings}))
    return network.eval()


def bert_folder(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """A folder of transformers."""
    save_tokenizer(folder)
    bert(seed, **settings).save_pretrained(folder)
    return folder
