import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugt_composer.importing.popularity import popularity

items = st.integers(0, 24)


@given(st.lists(items, min_size=1, max_size=60), st.lists(items, min_size=1, max_size=20))
def test_popularity_equals_a_plain_count(trained, targets):
    counts = Counter(trained)
    ranked = sorted(range(25), key=lambda item: (-counts[item], item))[:10]
    hits = [ranked.index(target) + 1 for target in targets if target in ranked]
    scores = popularity(np.bincount(trained, minlength=25), np.bincount(targets, minlength=25))
    assert scores["recall@10"] == pytest.approx(len(hits) / len(targets), abs=1e-4)
    assert scores["ndcg@10"] == pytest.approx(sum(1 / math.log2(rank + 1) for rank in hits) / len(targets), abs=1e-4)
