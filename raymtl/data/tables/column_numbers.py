"""Columns of inputs as numbers: what has to be known for it, and the numbers."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.tables.columns import LocateRow, in_order, numbers, texts, vectors
from raymtl.data.tables.fitted_column import FittedColumn
from raymtl.data.tables.settings import FilesConfig
from raymtl.data.tables.statistics import Counts, InputSums
from raymtl.data.tables.text_columns import encode_tokens, encoded_texts
from raymtl.data.tables.text_terms import TermSums, encode_terms, packed_counts
from raymtl.storage.notes import Note
from raymtl.types import UserError


def fit_columns(
    columns: Sequence[FittedColumn], sums: InputSums, source: FilesConfig, place: str
) -> list[FittedColumn]:
    """What has to be known to encode the columns, of their roles and of the sums over the rows for
    training, of which the first is at `place`. Raises UserError for a column without numbers.
    """
    fitted = []
    for column in columns:
        name = column.column
        if column.role == "picture" or _is_trained(column):
            fitted.append(column)
        elif column.is_sparse:
            fitted.append(_fit_text(column, sums.texts[name], source, place))
        elif column.role == "category":
            categories = _categories(sums.categories[name], source.max_categories)
            found = {"categories": categories, "size": len(categories) + 1}
            fitted.append(column.model_copy(update=found))
        else:
            moments = sums.numbers[name]
            if not moments.count:
                raise UserError(
                    f"{place}, column '{name}': expected numbers in the rows for training, got "
                    "none."
                )
            # A vector keeps its geometry: one mean and one spread for all of its numbers.
            found = {"mean": moments.mean, "std": moments.std or 1.0}
            fitted.append(column.model_copy(update=found))
    return fitted


def _is_trained(column: FittedColumn) -> bool:
    """Whether its numbers are those of tokens."""
    return column.encoder is not None and not column.encoder.frozen


def _fit_text(
    column: FittedColumn, sums: TermSums, source: FilesConfig, place: str
) -> FittedColumn:
    if not sums.most_terms:
        raise UserError(
            f"{place}, column '{column.column}': expected texts in the rows for training, got "
            "none. Leave the column away."
        )
    found = {
        "size": 2 * min(sums.most_terms, source.text_terms),
        "documents": packed_counts(sums.documents),
        "num_texts": sums.num_rows,
    }
    return column.model_copy(update=found)


def text_notes(columns: Sequence[FittedColumn], sums: InputSums) -> list[Note]:
    """On columns of text of which some terms are left out."""
    notes = []
    for column in columns:
        if not column.is_sparse:
            continue
        num_terms = column.size // 2
        share = sums.texts[column.column].share_above(num_terms)
        if share:
            text = (
                f"{share:.1%} of the texts have more than {num_terms} terms, of which those of "
                "least weight are left out"
            )
            notes.append(Note(place=f"column '{column.column}'", text=text, key="data.text_terms"))
    return notes


def _categories(counts: Counts, max_categories: int) -> tuple[str, ...]:
    """The different texts of a column; of too many the frequent ones, and all others are one."""
    frequent = sorted(counts, key=lambda text: (-counts[text], text))
    return in_order(frequent[:max_categories])


def encode_column(
    fitted: FittedColumn,
    column: pa.ChunkedArray,
    out: np.ndarray,
    locate_row: LocateRow,
    *,
    impute: bool,
) -> None:
    """Writes the numbers of a column to `out` [N, size].

    A missing number becomes the mean of the rows for training, 0 in their scale, where `impute`
    allows it. Raises UserError for infinite numbers, and for missing ones else.
    """
    if _is_trained(fitted):
        encode_tokens(fitted, column, out)
        return
    if fitted.encoder is not None:
        values = encoded_texts(fitted, column)
        values = np.where(np.isnan(values), fitted.mean, values)
        np.multiply(values - fitted.mean, 1 / fitted.std, out=out, casting="same_kind")
        return
    if fitted.role == "text":
        encode_terms(texts(column), fitted.text_rows, out)
        return
    if fitted.role == "category":
        index = pc.index_in(texts(column), value_set=pa.array(fitted.categories, pa.string()))
        codes = pc.fill_null(index, fitted.size - 1).to_numpy(zero_copy_only=False)
        out[:] = 0
        out[np.arange(len(out)), codes] = 1
        return
    if fitted.role == "vector":
        values = vectors(column, fitted.column, locate_row, fitted.size)
    else:
        values = numbers(column, fitted.column, locate_row)[:, None]
    if not np.isfinite(values.sum()):
        _check_finite(values, fitted.column, locate_row, impute=impute)
        values = np.where(np.isnan(values), fitted.mean, values)
    np.multiply(values - fitted.mean, 1 / fitted.std, out=out, casting="same_kind")


def _check_finite(values: np.ndarray, name: str, locate_row: LocateRow, *, impute: bool) -> None:
    """Raises UserError for infinite numbers in [N, size], and for missing ones unless `impute`."""
    infinite = np.isinf(values).any(1)
    if infinite.any():
        row = int(infinite.argmax())
        raise UserError(
            f"{locate_row(row)}, column '{name}': expected a finite number, got "
            f"{values[row].tolist()}."
        )
    if impute:
        return
    missing = ~np.isfinite(values).all(1)
    raise UserError(
        f"{locate_row(int(missing.argmax()))}, column '{name}': expected a number, got none "
        f"({int(missing.sum())} such rows here). data.missing_inputs: mean takes the mean of "
        "the rows for training; or leave the column away."
    )
