"""Texts as sparse vectors: TF-IDF (Salton & Buckley, 1988) of hashed n-grams (Weinberger et al.,
2009, arXiv:0902.2206).

    value = sign(c) (1 + ln |c|) (1 + ln((1 + n) / (1 + d))),  a row is scaled to length 1

c is the sum of the signs of a row's terms at a place, n the number of rows for training, and d how
many of these have something there.
"""

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from scipy.sparse import csr_matrix

WORDS = {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"}
"""One word and two, in small letters."""
CHARACTERS = {"analyzer": "char_wb", "ngram_range": (2, 5), "lowercase": False}
"""Two to five characters without a space between, as they are written: C and c are two atoms."""


class TextRows(NamedTuple):
    """How the rows for training use their places, by which other rows are weighed."""

    documents: np.ndarray
    """How many of them have something at each place, [P]."""
    num_rows: int

    def inverse_frequencies(self) -> np.ndarray:
        """The factor of each place, [P], as scikit-learn's `smooth_idf` has it."""
        factors: np.ndarray = 1 + np.log((1 + self.num_rows) / (1 + self.documents))
        return factors


@dataclass(frozen=True)
class TermSums:
    """Of the texts in rows for training."""

    documents: tuple[int, ...]
    """How many of them have something at each place."""
    num_terms: Mapping[int, int]
    """How many of them have so many places in use."""

    def __add__(self, other: Self) -> "TermSums":
        documents = [a + b for a, b in zip(self.documents, other.documents, strict=True)]
        num_terms = dict(self.num_terms)
        for number, rows in other.num_terms.items():
            num_terms[number] = num_terms.get(number, 0) + rows
        return TermSums(tuple(documents), num_terms)

    @property
    def num_rows(self) -> int:
        return sum(self.num_terms.values())

    @property
    def most_terms(self) -> int:
        """The largest number of places that a row uses."""
        return max(self.num_terms, default=0)

    def share_above(self, num_terms: int) -> float:
        """The share of rows that use more places than that."""
        above = sum(rows for number, rows in self.num_terms.items() if number > num_terms)
        return above / max(1, self.num_rows)


def sum_terms(text: "pa.Array", num_places: int) -> TermSums:
    """Looks at texts [N]."""
    counts = signed_counts(text, num_places)
    documents = np.bincount(counts.indices, minlength=num_places)
    numbers, rows = np.unique(np.diff(counts.indptr), return_counts=True)
    num_terms = dict(zip(numbers.tolist(), rows.tolist(), strict=True))
    return TermSums(tuple(documents.tolist()), num_terms)


def signed_counts(text: "pa.Array", num_places: int) -> "csr_matrix":
    """The sums of signs of the terms of each text, [N, num_places], without zeros."""
    from scipy.sparse import csr_matrix

    if not len(text):  # which the vectorizers refuse
        return csr_matrix((0, num_places))
    texts = ["" if value is None else value for value in text.to_pylist()]
    words, characters = _vectorizers(num_places)
    counts = words.transform(texts) + characters.transform(texts)
    counts.eliminate_zeros()
    return counts


@lru_cache(maxsize=8)
def _vectorizers(num_places: int) -> tuple[Any, Any]:
    """Those of words and of characters, which hash equal strings to equal places and signs."""
    from sklearn.feature_extraction.text import HashingVectorizer

    common = {"n_features": num_places, "alternate_sign": True, "norm": None}
    return HashingVectorizer(**common, **WORDS), HashingVectorizer(**common, **CHARACTERS)


def encode_terms(text: "pa.Array", rows: TextRows, out: np.ndarray) -> None:
    """Writes M places and then M values of each text to `out` [N, 2 M].

    Of a text with more terms those of the largest absolute values stay. The rest of a row that has
    fewer is 0.
    """
    most = out.shape[1] // 2
    counts = signed_counts(text, len(rows.documents))
    row = np.repeat(np.arange(len(text)), np.diff(counts.indptr))
    place = counts.indices
    factors = rows.inverse_frequencies()[place]
    value = np.sign(counts.data) * (1 + np.log(np.abs(counts.data))) * factors
    order = np.lexsort((place, -np.abs(value), row))
    row, place, value = row[order], place[order], value[order]
    rank = np.arange(len(row)) - counts.indptr[row]
    taken = rank < most
    row, place, value, rank = row[taken], place[taken], value[taken], rank[taken]
    length = np.sqrt(np.bincount(row, value**2, minlength=len(text)))
    out[:] = 0
    out[row, rank] = place
    out[row, most + rank] = value / length[row]


def packed_counts(counts: np.ndarray | tuple[int, ...]) -> str:
    """Counts below 2^32 as a text, which is short where many are small."""
    return base64.b64encode(zlib.compress(np.asarray(counts, "<u4").tobytes(), 9)).decode()


@lru_cache(maxsize=32)
def unpacked_counts(text: str) -> np.ndarray:
    """The counts of such a text, [P]. Raises ValueError for another text."""
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4").astype(np.int64)
    except zlib.error as error:
        raise ValueError(f"expected packed counts, got others ({error})") from None
