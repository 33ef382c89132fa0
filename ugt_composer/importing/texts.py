"""Vectors of items from their texts, and from texts that are added later.

n texts, W words, d dimensions. Vectors have length 1, or 0 where no word of a text is known.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

from ugt_composer.importing.exact import integers_of, normalized, rounded
from ugt_composer.importing.svd import Reduction

MAX_WORDS = 100_000  # size of the vocabulary; the most frequent words are kept
WORD = r"(?u)\b\w+\b"
IDF_STEPS = 1 << 16  # of an inverse document frequency
WEIGHT_STEPS = 1 << 14  # of a word's weight in a text, at most 1
LARGEST_BITS = 20  # of a coordinate, so that sums of their squares are exact


@dataclass(frozen=True)
class TextModel:
    """The vocabulary and the projection that make a vector of a text, in integers: equal on every machine.

    Attributes:
        words: text (W,), in the order of the rows of `projection`.
        idf: int64 (W,), inverse document frequencies in steps of 1 / IDF_STEPS.
        projection: integers (W, d), as float64.
    """

    words: tuple[str, ...]
    idf: np.ndarray
    projection: np.ndarray

    def vectors(self, texts: pl.Series) -> np.ndarray:
        """float32 (n, d): of texts that need not be among those that made the model."""
        if not self.words:
            return np.zeros((len(texts), self.projection.shape[1]), np.float32)
        weights = self._counts(texts).astype(np.float64)
        weights.data = 1 + np.log(weights.data)
        weights = weights.multiply(self.idf / IDF_STEPS).tocsr()
        lengths = np.sqrt(np.asarray(weights.multiply(weights).sum(axis=1)).ravel())
        scale = WEIGHT_STEPS / np.where(lengths > 0, lengths, 1)
        weights.data = np.rint(weights.data * np.repeat(scale, np.diff(weights.indptr)))
        sums = np.asarray(weights @ self.projection)
        excess = max(int(np.frexp(np.abs(sums).max(initial=0))[1]) - LARGEST_BITS, 0)
        return rounded(normalized(np.rint(np.ldexp(sums, -excess))))

    def _counts(self, texts: pl.Series) -> sparse.csr_matrix:
        return self._counter.transform(texts.fill_null("").to_list())

    @cached_property
    def _counter(self) -> CountVectorizer:
        return CountVectorizer(vocabulary=list(self.words), token_pattern=WORD)


def fit_texts(texts: pl.Series, dimensions: int, seed: int) -> tuple[TextModel, np.ndarray]:
    """A model of the texts and their vectors, float32 (n, d): TF-IDF of the words, reduced by a singular value
    decomposition (latent semantic analysis)."""
    counter = CountVectorizer(
        min_df=2 if len(texts) > 2 else 1,  # a word that occurs in one item only relates it to no other
        token_pattern=WORD,
    )
    try:
        counts = counter.fit_transform(texts.fill_null("").to_list())
    except ValueError:  # no word occurs in two items
        return TextModel((), np.zeros(0, np.int64), np.zeros((0, 1))), np.zeros((len(texts), 1), np.float32)
    words = counter.get_feature_names_out()
    if counts.shape[1] > MAX_WORDS:  # of equally frequent words the first ones, everywhere
        frequency = np.asarray(counts.sum(axis=0)).ravel()
        kept = np.sort(np.argsort(-frequency, kind="stable")[:MAX_WORDS])
        counts, words = counts[:, kept], words[kept]
    weights = TfidfTransformer(sublinear_tf=True)
    reduction = Reduction.of(weights.fit_transform(counts), dimensions, seed)
    idf = np.rint(weights.idf_ * IDF_STEPS).astype(np.int64)
    return TextModel(tuple(map(str, words)), idf, integers_of(reduction.columns)), reduction.vectors
