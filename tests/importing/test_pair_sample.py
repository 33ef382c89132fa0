"""Pairs of more interactions than one process can add up: of a narrower window, and of some users."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.interactions_to_jsonl import main
from ugt_composer.catalogue.neighbour_file import read_neighbours
from ugt_composer.importing import item_vectors, pair_counts
from ugt_composer.importing.exact import normalized, unit_steps
from ugt_composer.importing.item_vectors import mean_of_nearest
from ugt_composer.importing.pair_counts import MAX_PAIRS, PairSample


@given(st.integers(1, 50), st.integers(0, 10**10))
def test_there_are_about_as_many_pairs_as_are_allowed(window, interactions):
    sample = PairSample.of(window, interactions)
    assert 1 <= sample.window <= window
    assert interactions / sample.one_of * sample.window <= MAX_PAIRS
    if sample.one_of > 1:
        assert sample.window == 1
        assert interactions / (sample.one_of - 1) > MAX_PAIRS, "no more users are left out than needed"
    elif sample.window < window:
        assert interactions * (sample.window + 1) > MAX_PAIRS


def test_a_user_is_taken_whatever_other_users_there_are():
    ids = pl.Series([f"u{number}" for number in range(20_000)])
    sample = PairSample(1, 4)
    taken = sample.users(ids)
    assert taken.mean() == pytest.approx(1 / 4, abs=0.02)
    order = np.random.default_rng(0).permutation(len(ids))[:500]
    assert (sample.users(ids[order.tolist()]) == taken[order]).all()
    assert PairSample(5, 1).users(ids).all()


def test_a_vector_is_taken_from_similar_items_of_the_whole_catalogue(monkeypatch):
    monkeypatch.setattr(item_vectors, "MOST_COMPARED", 12)
    rng = np.random.default_rng(0)
    basis, values = normalized(rng.standard_normal((40, 6))), normalized(rng.standard_normal((40, 3)))
    queries = normalized(rng.standard_normal((5, 6)))
    some = [0, 3, 6, 10, 13, 16, 20, 23, 26, 30, 33, 36]  # ⌊40 i / 12⌋
    for query, found in zip(queries, mean_of_nearest(queries, basis, values), strict=True):
        nearest = sorted(some, key=lambda row: -(unit_steps(query) @ unit_steps(basis[row])))[:5]
        assert found == pytest.approx(normalized(unit_steps(values[nearest]).sum(axis=0, keepdims=True))[0])


def test_an_import_counts_the_pairs_of_some_users_and_says_so(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    users = {f"u{number}": rng.choice(30, 7, replace=False) for number in range(120)}
    lines = [" ".join([user, *(f"i{item}" for item in items)]) for user, items in users.items()]
    (tmp_path / "sequences.txt").write_text("\n".join(lines) + "\n")

    def imported(name: str) -> dict:
        words = [str(tmp_path / "sequences.txt"), "--clusters", "3", "4", "--dimensions", "4"]
        assert main([*words, "--out", str(tmp_path / name)]) == 0
        return json.loads((tmp_path / name / "report.json").read_text())

    everybody = imported("all")
    assert everybody["pairs"] == {
        "semantic_ids": {"window": 5, "one_user_of": 1},
        "neighbours": {"window": 20, "one_user_of": 1},
    }
    monkeypatch.setattr(pair_counts, "MAX_PAIRS", 250)  # of 600 interactions: five of each user are trained on
    some = imported("some")
    assert some["pairs"]["semantic_ids"] == some["pairs"]["neighbours"] == {"window": 1, "one_user_of": 3}
    assert some["popularity"] == everybody["popularity"]
    taken = PairSample(1, 3).users(pl.Series(users.keys()))
    wanted = set()
    for (_, items), is_taken in zip(users.items(), taken, strict=True):
        if is_taken:
            wanted |= {frozenset(pair) for pair in zip(items[:4].tolist(), items[1:5].tolist(), strict=True)}
    ids = list(json.loads((tmp_path / "some/semantic_ids.json").read_text())["items"])
    _, neighbours, _ = read_neighbours(str(tmp_path / "some/item_neighbours.npz"))
    found = {
        frozenset((int(ids[row][1:]), int(ids[column][1:])))
        for row, columns in enumerate(neighbours)
        for column in columns
        if column >= 0
    }
    assert found == wanted
