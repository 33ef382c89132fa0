"""Vectors of items from their texts, and from texts that are added later.

n texts, W words, d dimensions. Vectors have length 1, or 0 where no word of a text is known.

Chinese and Japanese put no blanks between words, and Korean joins nouns and particles. Runs of their characters are
split into overlapping pairs, as Lucene's CJKBigramFilter does: 露营帐篷 into 露营, 营帐, 帐篷. That needs no
dictionary, and texts that share a word share its pairs.
"""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

from ugt_composer.importing.exact import integers_of, normalized, rounded
from ugt_composer.importing.svd import Reduction

MAX_WORDS = 100_000  # size of the vocabulary; the most frequent words are kept
CJK = (
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d"  # Hiragana and Katakana
    "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff\uffa0-\uffdc"  # Hangul
)
IS_CJK = re.compile(f"[{CJK}]")
WORD = re.compile(r"\b\w+\b")
# At each place the group is a pair, a character that stands alone, or a word; nothing at the last one of a run.
WORD_OR_PAIR = re.compile(rf"(?=([{CJK}]{{2}}|(?<![{CJK}])[{CJK}]|[^\W{CJK}]+))(?:[{CJK}]|[^\W{CJK}]+)")
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
        return CountVectorizer(vocabulary=list(self.words), tokenizer=words_of, token_pattern=None)


def words_of(text: str) -> list[str]:
    """The words of a text, and the pairs of characters of its Chinese, Japanese and Korean parts."""
    if text.isascii() or not IS_CJK.search(text):
        return WORD.findall(text)
    return WORD_OR_PAIR.findall(text)


def fit_texts(texts: pl.Series, dimensions: int, seed: int) -> tuple[TextModel, np.ndarray]:
    """A model of the texts and their vectors, float32 (n, d): TF-IDF of the words, reduced by a singular value
    decomposition (latent semantic analysis)."""
    counter = CountVectorizer(
        min_df=2 if len(texts) > 2 else 1,  # a word that occurs in one item only relates it to no other
        tokenizer=words_of,
        token_pattern=None,
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
