"""Beam search for the items with the highest log-probability under the three conditional level heads.

Shapes: B users, D width, L = 3 levels, V_l codebook size of level l, W beams, R slots, K recommendations, X excluded
items, N items to score, n items of the catalogue, n_l its prefixes at level l.

    log p(item) = log p(l1 | h) + log p(l2 | h, l1) + log p(l3 | h, l1, l2)

Each term is a log-softmax over the whole codebook of its level, so that the catalogue only decides which items can be
returned, not their probabilities; or over the ids that the catalogue has below the prefix, so that the probabilities of
its items sum to 1 and nothing is computed for ids that cannot come next. A model is trained with one or the other.

Additional item scores, such as the similarity of user and item vectors, are added to log p. A prefix is then ranked by
its log p plus the best score of an item below it, an upper bound for these items.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ugt_composer.catalogue.code_space import CodeSpace
from ugt_composer.catalogue.open_nodes import NodeLimits, OnlyItems
from ugt_composer.catalogue.trie import Children, ItemTrie
from ugt_composer.generation.catalogue_scores import CatalogueScores
from ugt_composer.generation.catalogue_vectors import CatalogueVectors
from ugt_composer.generation.item_log_probs import LevelLogits
from ugt_composer.generation.item_scores import ItemScores
from ugt_composer.generation.node_biases import NodeBiases
from ugt_composer.vocabulary import LEVELS

# Approximate bytes of working tensors; users are searched in groups that stay below it. On a CPU, memory of this size
# is reused from group to group, whereas larger tensors are allocated by the system each time, page by page.
MEMORY_BOUND, CPU_MEMORY_BOUND = 256 * 2**20, 64 * 2**20
SLOT_BYTES = 64  # a slot holds about eight 64-bit numbers at once, and so does an item of a user's own list
ITEM_BYTES = 16  # four float32: a score, a copy that masks excluded items, and temporaries
LOGIT_BYTES = 12  # the logit as the head returns it, its float32 copy, and its exponential


class Recommendations(NamedTuple):
    """The best items of each user, best first. Where fewer than K exist: ids 0, item_index -1, score -inf.

    Attributes:
        ids: int64 (B, K, 3).
        item_index: int64 (B, K) row of `trie.items`; without a trie the code ((l1 * V_2) + l2) * V_3 + l3.
        scores: float32 (B, K) that the items are ranked by: log-probabilities, plus the item scores if given.
        log_probs: float32 (B, K).
        best_dropped: float32 (B,) the best score of a prefix that the search dropped, an upper bound of the scores of
            the items below it: if the last score of a list is above it, the list is exact. -inf if none was dropped;
            None: unknown.
    """

    ids: Tensor
    item_index: Tensor
    scores: Tensor
    log_probs: Tensor
    best_dropped: Tensor | None = None


class BestItemScores(Protocol):
    """The best score of an item below each child of some beams: float32 (B, R), -inf where none may be chosen."""

    def __call__(self, level: int, nodes: Tensor, alive: Tensor, children: Children) -> Tensor: ...


class _HeldScores:
    """The best scores of all nodes, given those of all items (B, n)."""

    def __init__(self, item_scores: Tensor, trie: ItemTrie, limits: list[NodeLimits]):
        self.best = trie.best_below(limits[-1].masked(item_scores))

    def __call__(self, level: int, nodes: Tensor, alive: Tensor, children: Children) -> Tensor:
        return self.best[level].gather(1, children.nodes)


class _Beams(NamedTuple):
    """The current prefixes, in ascending order of nodes: ids (B, W, level), nodes (B, W), scores and log_probs (B, W),
    which are -inf in unused beams."""

    ids: Tensor
    nodes: Tensor
    scores: Tensor
    log_probs: Tensor


@torch.no_grad()
def beam_search(
    heads: LevelLogits,
    hidden: Tensor,
    trie: ItemTrie | None,
    k: int,
    beam_width: int,
    exclude: Tensor | None = None,
    item_scores: Callable[[slice], Tensor] | None = None,
    over_catalogue: bool = False,
    memory_bound: int | None = None,
    only: OnlyItems | None = None,
    biases: NodeBiases | None = None,
) -> Recommendations:
    """The K best items of each user.

    Exact if no level above the last has more than `beam_width` nodes; with a narrower beam, `best_dropped` shows which
    lists are. Equal scores are ordered by item index (without a trie: by triple), smallest first, and so are equal
    prefixes, so the result depends on the logits only.
    Items that the trie withholds, that a user's `exclude` has or that a user's `only` lacks take no beam, nor do
    prefixes without another item: with `beam_width` >= K every user gets K items, unless fewer are left. Probabilities
    and item scores do not depend on what is withheld.
    The number of calls of the heads depends on shapes only, never on values, so ranks that hold shards of the heads
    make the same number of calls.

    Args:
        heads: the model's output heads.
        hidden: (B, D) decoder state at BOS.
        trie: the catalogue, on the device of `hidden`; None: every triple of non-special ids, existing or not.
        k: number of items per user.
        beam_width: number of prefixes that are kept at each level, at least k.
        exclude: int64 (B, X, 3) items never to recommend, such as the history; triples that are not items are ignored.
        item_scores: called with a slice of b users, returns scores to add to the log-probabilities of all items:
            float32 (b, n), in the order of `trie.items`. `ItemScores` of a large catalogue are computed as the
            search needs them instead.
        over_catalogue: each level's softmax runs over the ids that the trie has below the prefix.
        memory_bound: bytes of working tensors above which the users are searched in several groups; None: a default
            for the device.
        only: the only items that may be recommended to some of the users; needs a trie.
        biases: of the B users, added to logits; only with `over_catalogue`.
    """
    assert biases is None or over_catalogue
    if not 1 <= k <= beam_width:
        raise ValueError(f"beam_width {beam_width} must be at least k {k}, and k at least 1")
    sizes = _codebook_sizes(heads, hidden)
    space: ItemTrie | CodeSpace = CodeSpace(sizes) if trie is None else trie
    if trie is not None:
        trie.check(sizes)
    if over_catalogue and trie is None:
        raise ValueError("a softmax over the catalogue needs a trie")
    is_large = isinstance(item_scores, ItemScores) and isinstance(item_scores.items, CatalogueVectors)
    bytes_per_user = _bytes_per_user(space, sizes, beam_width, hidden.shape[-1] if over_catalogue else None)
    if item_scores is not None:
        if trie is None:
            raise ValueError("item_scores need a trie, because they are scores of its items")
        bytes_per_user += 0 if is_large else ITEM_BYTES * len(trie)
    if only is not None:
        bytes_per_user += SLOT_BYTES * only.ids.shape[1]
    if memory_bound is None:
        memory_bound = CPU_MEMORY_BOUND if hidden.device.type == "cpu" else MEMORY_BOUND
    group = max(1, memory_bound // bytes_per_user)
    parts = []
    for start in range(0, max(1, len(hidden)), group):
        rows = slice(start, start + group)
        excluded = None if exclude is None else exclude[rows]
        limits = space.limits(excluded, None if only is None else only.of(rows))
        of_rows = None if biases is None else biases.of(rows)
        scores: BestItemScores | None = None
        if item_scores is not None:
            assert trie is not None
            if is_large:
                assert isinstance(item_scores, ItemScores)
                scores = CatalogueScores(item_scores, rows, trie, limits, memory_bound)
            else:
                scores = _HeldScores(item_scores(rows), trie, limits)
        parts.append(_search(heads, hidden[rows], space, k, beam_width, limits, scores, over_catalogue, of_rows))
    return Recommendations(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def search_bytes(trie: ItemTrie | None, sizes: tuple[int, ...], k: int, beam_width: int) -> int:
    """Approximate bytes that the search for one user takes: for a check before it starts."""
    space: ItemTrie | CodeSpace = CodeSpace(sizes) if trie is None else trie
    return _bytes_per_user(space, sizes, beam_width) + k * SLOT_BYTES


def _codebook_sizes(heads: LevelLogits, hidden: Tensor) -> tuple[int, ...]:
    no_prefix = torch.empty(0, LEVELS, dtype=torch.int64, device=hidden.device)
    return tuple(heads(level, hidden[:0], no_prefix[:, :level]).shape[-1] for level in range(LEVELS))


def _bytes_per_user(
    space: ItemTrie | CodeSpace, sizes: tuple[int, ...], beam_width: int, gathered: int | None = None
) -> int:
    """gathered: the width D of the vectors to gather if logits are computed for slots only, else None."""
    width, needed = 1, 1
    for level in range(LEVELS):
        slots = space.slots(level, width)
        logits = width * sizes[level] * LOGIT_BYTES
        if gathered is not None:
            logits = min(logits, slots * 3 * 4 * gathered)  # two vectors and their product, in float32
        needed = max(needed, logits + slots * SLOT_BYTES)
        width = min(beam_width, slots)
    return needed


def _search(
    heads: LevelLogits,
    hidden: Tensor,
    space: ItemTrie | CodeSpace,
    k: int,
    beam_width: int,
    limits: list[NodeLimits],
    item_scores: BestItemScores | None,
    over_catalogue: bool,
    biases: NodeBiases | None,
) -> Recommendations:
    root = torch.zeros(len(hidden), 1, dtype=torch.int64, device=hidden.device)
    start = torch.zeros_like(root, dtype=torch.float32)
    beams = _Beams(root.new_empty(len(hidden), 1, 0), root, start, start)
    dropped = torch.full_like(start[:, 0], float("-inf"))
    for level in range(LEVELS):
        last = level == LEVELS - 1
        width = k if last else beam_width
        rest = limits[level], item_scores, width, over_catalogue, biases
        beams, best_other = _step(heads, hidden, space, level, beams, *rest, ranked=last)
        dropped = dropped if last else torch.maximum(dropped, best_other)
    return _recommendations(beams, k, dropped)


def _step(
    heads: LevelLogits,
    hidden: Tensor,
    space: ItemTrie | CodeSpace,
    level: int,
    beams: _Beams,
    limits: NodeLimits,
    item_scores: BestItemScores | None,
    width: int,
    over_catalogue: bool,
    biases: NodeBiases | None,
    ranked: bool,
) -> tuple[_Beams, Tensor]:
    """Extends every beam by one id and keeps the `width` best: best first if `ranked`, else in order of nodes. Also
    returns the best score of the others, float32 (B,), -inf if there are none.

    limits: which nodes of the level may be chosen.
    item_scores: added to the log-probabilities of the level's nodes.
    """
    alive = beams.scores != float("-inf")
    children = space.children(level, beams.nodes, alive)
    states = hidden.unsqueeze(1).expand(-1, beams.nodes.shape[1], -1)
    if over_catalogue:
        log_probs = heads(level, states, beams.ids, children.beam, children.ids).float()
        if biases is not None:
            log_probs = biases.added_to(level, log_probs, children.nodes)
        normaliser = _log_sum_of_beams(log_probs, children, beams.nodes.shape[1])
    else:
        logits = heads(level, states, beams.ids).float()
        normaliser = logits.logsumexp(-1)
        log_probs = logits.flatten(1).gather(1, children.beam * logits.shape[-1] + children.ids)
    # A beam whose logits are all -inf has no valid children; keep -inf - -inf from becoming NaN.
    normaliser = normaliser.masked_fill(normaliser == float("-inf"), 0.0)
    log_probs = log_probs + (beams.log_probs - normaliser).gather(1, children.beam)
    scores = log_probs
    if item_scores is not None:
        scores = log_probs + item_scores(level, beams.nodes, alive, children)
    scores = scores.masked_fill(~limits.allows(children.nodes, children.filled), float("-inf"))
    best, slots = _best_slots(scores, width)
    best_other = scores.scatter(1, slots, float("-inf")).amax(1)
    if not ranked:
        slots, order = slots.sort(1)
        best = best.gather(1, order)
    parents = children.beam.gather(1, slots)
    prefix = beams.ids.gather(1, parents.unsqueeze(2).expand(-1, -1, level))
    ids = torch.cat([prefix, children.ids.gather(1, slots).unsqueeze(2)], dim=2)
    return _Beams(ids, children.nodes.gather(1, slots), best, log_probs.gather(1, slots)), best_other


def _log_sum_of_beams(logits: Tensor, children: Children, width: int) -> Tensor:
    """Log-sum-exp over the children of each beam: logits (B, R) -> (B, W)."""
    logits = logits.masked_fill(~children.filled, float("-inf"))
    start = logits.new_full((len(logits), width), float("-inf"))
    largest = start.scatter_reduce(1, children.beam, logits, "amax")
    largest = largest.masked_fill(largest == float("-inf"), 0.0)
    exponentials = (logits - largest.gather(1, children.beam)).exp()
    return torch.zeros_like(start).scatter_add(1, children.beam, exponentials).log() + largest


def _best_slots(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of scores float32 (B, R), best first, ties by slot: (scores, slots), each (B, min(k, R)).

    `topk` does not define the order of equal values, so it gets unique integers: the upper bits are those of the score,
    converted so that they sort like integers, and the lower 31 bits count the slots backwards.
    """
    lowest_bits = 2**31 - 1
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    ordered = torch.where(bits < 0, bits ^ lowest_bits, bits).long()
    backwards = lowest_bits - torch.arange(scores.shape[1], device=scores.device)
    top = ((ordered << 32) | backwards).topk(min(k, scores.shape[1]), dim=1).values
    bits = (top >> 32).int()
    best = torch.where(bits < 0, bits ^ lowest_bits, bits).view(torch.float32)
    return best, lowest_bits - (top & lowest_bits)


def _recommendations(beams: _Beams, k: int, best_dropped: Tensor) -> Recommendations:
    is_item = beams.scores != float("-inf")
    ids = beams.ids.masked_fill(~is_item.unsqueeze(2), 0)
    index = beams.nodes.masked_fill(~is_item, -1)
    log_probs = beams.log_probs.masked_fill(~is_item, float("-inf"))
    missing = (0, k - ids.shape[1])
    pad = torch.nn.functional.pad
    return Recommendations(
        pad(ids, (0, 0, *missing)),
        pad(index, missing, value=-1),
        pad(beams.scores, missing, value=float("-inf")),
        pad(log_probs, missing, value=float("-inf")),
        best_dropped,
    )
