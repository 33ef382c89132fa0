"""Exact lists of the best items, by beam searches that become wider until each list is proven to be exact.

A prefix's score is an upper bound of the scores of the items below it. If the last item of a list scores above every
prefix that the search dropped, no dropped item belongs into the list. Only the other rows are searched again, with a
beam that is GROWTH times as wide, and at last with one that holds every prefix of the catalogue.
"""

from collections.abc import Sequence

from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.data.codec import Row
from ugt_composer.data.history import SemanticId
from ugt_composer.generation.beam_search import search_bytes
from ugt_composer.inference.recommender import Recommender

START_WIDTH, GROWTH = 64, 4
MARGIN = 1e-4  # of log-probabilities: rounding errors must not look like a proof


def beam_widths(trie: ItemTrie, codebook_sizes: tuple[int, ...], k: int, most_bytes: int) -> list[int]:
    """The widths of the searches for k items. The last one holds every prefix, unless that takes more than `most_bytes`
    for one user."""
    every_prefix = max(len(level) for level in trie.levels[:-1])
    widths = [max(k, START_WIDTH)]
    while widths[-1] < every_prefix:
        width = min(widths[-1] * GROWTH, every_prefix)
        if search_bytes(trie, codebook_sizes, k, width) > most_bytes:
            break
        widths.append(width)
    return widths


def exact_lists(
    recommender: Recommender,
    rows: Sequence[Row],
    excluded: Sequence[Sequence[SemanticId]],
    k: int,
    widths: Sequence[int],
) -> tuple[list[list[SemanticId]], int]:
    """The k best items of each row, best first, without those of its history and its `excluded` ones; fewer if fewer
    are left.

    Args:
        widths: see `beam_widths`.

    Returns: the lists, and how many of them the widest search did not prove to be exact.
    """
    lists: list[list[SemanticId]] = [[] for _ in rows]
    pending = list(range(len(rows)))
    for width in widths:
        exclude = [excluded[at] for at in pending]
        best = recommender.recommend([rows[at] for at in pending], k, width, exclude_seen=True, exclude=exclude)
        assert best.best_dropped is not None
        is_exact = (best.best_dropped == float("-inf")) | (best.scores[:, -1] > best.best_dropped + MARGIN)
        counts = (best.item_index >= 0).sum(1).tolist()
        for at, ids, count in zip(pending, best.ids.tolist(), counts, strict=True):
            lists[at] = [(l1, l2, l3) for l1, l2, l3 in ids[:count]]
        pending = [at for at, exact in zip(pending, is_exact.tolist(), strict=True) if not exact]
        if not pending:
            break
    return lists, len(pending)
