"""Random rows for the metrics, and the same rows as tensors."""

import torch
from hypothesis import strategies as st

from ugt_composer.generation.beam_search import Recommendations

LEVEL_IDS = st.integers(5, 7)  # few, so that partial and full hits are frequent
ITEM = st.tuples(LEVEL_IDS, LEVEL_IDS, LEVEL_IDS)
CATALOGUE = [(a, b, c) for a in range(5, 8) for b in range(5, 8) for c in range(5, 8)]
WIDTH = 12

RELEVANT = st.lists(ITEM, min_size=1, max_size=6)
REPEATING_ROWS = st.lists(st.tuples(st.lists(ITEM, max_size=WIDTH), RELEVANT), min_size=1, max_size=8)
DISTINCT_ROWS = st.lists(st.tuples(st.lists(ITEM, max_size=WIDTH, unique=True), RELEVANT), min_size=1, max_size=8)


def as_tensors(rows):
    """(recommendations, targets, target_mask) of (predicted, relevant) rows, padded."""
    ids = torch.zeros(len(rows), WIDTH, 3, dtype=torch.int64)
    index = torch.full((len(rows), WIDTH), -1)
    targets = torch.full((len(rows), 6, 3), -100)
    mask = torch.zeros(len(rows), 6, dtype=torch.bool)
    for row, (predicted, relevant) in enumerate(rows):
        for place, item in enumerate(predicted):
            ids[row, place] = torch.tensor(item)
            index[row, place] = CATALOGUE.index(item)
        for place, item in enumerate(relevant):
            targets[row, place] = torch.tensor(item)
            mask[row, place] = True
    return Recommendations(ids, index, *torch.zeros(2, len(rows), WIDTH)), targets, mask
