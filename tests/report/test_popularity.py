"""Popularity of items, compared with counting by hand."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.shop import SIZES
from ugt_composer.config.schema import StreamConfig
from ugt_composer.report.popularity import GROUPS, ItemKeys, concentration, count_targets, popularity, recommend_folders
from ugt_composer.vocabulary import IGNORE_INDEX


@given(st.lists(st.integers(0, 30), max_size=200), st.sets(st.integers(0, 40), max_size=20))
def test_groups_hold_every_target_once_from_popular_to_rare(targets, others):
    found = popularity(np.array(targets, np.int64), np.array(sorted(others), np.int64), len(targets), len(targets))
    expected = Counter(targets)
    assert dict(zip(found.keys.tolist(), found.counts.tolist(), strict=True)) == {
        key: expected[key] for key in {*targets, *others}
    }
    assert found.targets.sum() == len(targets)
    assert found.items.sum() == len({*targets, *others})
    assert found.targets[GROUPS] == 0
    assert found.items[GROUPS] == len(others - set(targets))
    bounds = [found.counts[found.groups == group] for group in range(GROUPS)]
    present = [counts for counts in bounds if len(counts)]
    assert all(a.min() >= b.max() for a, b in pairwise(present))
    keys = np.array([*targets, 99])
    assert (found.group_of(keys)[:-1] < GROUPS).all()
    assert found.group_of(keys)[-1] == GROUPS


def test_groups_have_about_as_many_targets():
    counts = np.random.default_rng(0).zipf(1.5, 2000).clip(max=200)
    targets = np.repeat(np.arange(2000), counts)
    found = popularity(targets, np.arange(2000), 1, 1)
    assert np.abs(found.targets[:GROUPS] / len(targets) - 1 / GROUPS).max() < 0.02
    assert (np.diff(found.items[:GROUPS]) >= 0).all()


def test_targets_of_shards_are_counted_like_those_of_the_rows(shop):
    keys = ItemKeys(SIZES)
    folders = [StreamConfig(local=str(shop / name)) for name in ("preference", "train")]
    recommend = recommend_folders(folders)
    assert [folder.local for folder in recommend] == [str(shop / "train")]
    found = count_targets(recommend, keys, np.empty(0, np.int64))
    expected: Counter[int] = Counter()
    for line in (shop / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        for l1, l2, l3 in zip(*(row[f"labels_l{level}"] for level in (1, 2, 3)), strict=True):
            if IGNORE_INDEX not in (l1, l2, l3):
                expected[(l1 * SIZES[1] + l2) * SIZES[2] + l3] += 1
    assert dict(zip(found.keys.tolist(), found.counts.tolist(), strict=True)) == expected
    assert found.rows_read == found.rows == 205


def test_concentration_adds_up_the_most_popular_items_first():
    popular, counts = np.array([1, 5, 3, 0]), np.array([10, 0, 30, 60])
    items, fractions = concentration(popular, counts)
    assert items == [0, 0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(fractions, [0, 0, 0.3, 0.4, 1])
