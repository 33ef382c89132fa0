import re
import unicodedata

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugt_composer.importing.texts import fit_texts, words_of

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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("露营帐篷", ["露营", "营帐", "帐篷"]),
        ("书", ["书"]),
        ("Nike 跑鞋 42", ["Nike", "跑鞋", "42"]),
        ("2024新款iPhone手机壳，红", ["2024", "新款", "iPhone", "手机", "机壳", "红"]),
        ("スニーカー・メンズの靴", ["スニ", "ニー", "ーカ", "カー", "メン", "ンズ", "ズの", "の靴"]),
        ("여름 운동화를", ["여름", "운동", "동화", "화를"]),  # not across a blank
        ("𠮷野家", ["𠮷野", "野家"]),
        ("时々〇", ["时々", "々〇"]),
        ("", []),
    ],
)
def test_chinese_japanese_and_korean_are_split_into_pairs_of_characters(text, words):
    assert words_of(text) == words


def is_cjk(character: str) -> bool:
    return unicodedata.name(character, "").startswith(
        ("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH", "HANGUL", "IDEOGRAPHIC", "〇")
    )


@given(st.text(st.characters(exclude_categories=["Cs", "Cn"]).filter(lambda character: not is_cjk(character))))
def test_other_texts_have_the_words_that_they_always_had(text):
    assert words_of(text) == re.findall(r"\b\w+\b", text)


@given(st.text("ab1 _é,露营帐篷のカー운동"))
def test_the_words_hold_all_letters_in_their_order(text):
    """A pair begins with the character that ends the one before it in its run."""
    letters = [word if word[0].isascii() or len(word) == 1 else word[0] for word in words_of(text)]
    found = "".join(letters)
    ordered = iter("".join(re.findall(r"\w+", text)))
    assert all(letter in ordered for letter in found)
    assert set("".join(words_of(text))) == set("".join(re.findall(r"\w+", text)))


def test_chinese_titles_of_the_same_kind_are_near():
    tents = ["经典防水露营双人帐篷", "轻便露营双人帐篷", "防水露营帐篷加厚"]
    shoes = ["女士透气跑步鞋春季", "Nike 跑步鞋 42", "男士春季透气跑步鞋"]
    vectors = fit_texts(pl.Series([*tents, *shoes]), 2, seed=1)[1]
    assert length(vectors) == pytest.approx(np.ones(6))
    near = vectors @ vectors.T
    assert min(near[:3, :3].min(), near[3:, 3:].min()) > 0.5 > near[:3, 3:].max()
