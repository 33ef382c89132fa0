import numpy as np
import polars as pl
import pytest

from ugt_composer.importing.texts import fit_texts

TEXTS = pl.Series(["red nail polish", "pink nail polish", "blue nail polish", "skin oil", "body skin oil", None])


def length(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=1)


def test_similar_texts_are_near_and_no_text_is_nothing():
    vectors = fit_texts(TEXTS, 3, seed=1)[1]
    assert vectors[0] @ vectors[1] > 0.9 > 0.5 > vectors[0] @ vectors[3]
    assert length(vectors) == pytest.approx([1, 1, 1, 1, 1, 0])


def test_texts_without_a_common_word_give_zero_vectors():
    model, vectors = fit_texts(pl.Series(["a", "b", "c"]), 4, 0)
    assert (vectors == 0).all()
    assert (model.vectors(pl.Series(["a"])) == 0).all()


def test_a_text_that_comes_later_has_the_vector_that_it_would_have_had():
    random = np.random.default_rng(0)
    texts = pl.Series([" ".join(f"w{n}" for n in random.zipf(1.5, 6) % 50) for _ in range(300)])
    model, vectors = fit_texts(texts, 16, seed=1)
    later = model.vectors(texts)
    assert (later * vectors).sum(axis=1).min() > 0.97
    assert length(model.vectors(pl.Series(["unknown words", None]))) == pytest.approx([0, 0])
    backwards = pl.Series([" ".join(text.upper().split()[::-1]) for text in texts])
    assert (model.vectors(backwards) == later).all(), "neither order nor case matters"
