"""Quality of semantic IDs: collisions, codebook usage, and whether similar items share a prefix.

n items with ids int (n, 3).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.preprocessing import normalize

from ugt_composer.terminal import counted
from ugt_composer.vocabulary import LEVELS, NUM_SPECIAL_IDS

NEIGHBOURS = 10
SAMPLE = 2000  # items whose neighbours are examined
BLOCK = 500


def quality(
    ids: np.ndarray, codebook_sizes: Sequence[int], views: Mapping[str, np.ndarray], seed: int
) -> dict[str, Any]:
    """The quality figures for the report.

    Args:
        views: name → vectors (n, d) that define which items are neighbours; zero vectors are left out.
    """
    return {
        "items": len(ids),
        "collisions": _collisions(ids),
        "levels": [_level(ids[:, level], size) for level, size in enumerate(codebook_sizes)],
        "prefixes": [_prefix(ids[:, : level + 1]) for level in range(LEVELS)],
        "neighbours": {name: _neighbours(ids, vectors, seed) for name, vectors in views.items()},
    }


def summary(figures: Mapping[str, Any]) -> str:
    """The figures as readable text."""
    shared = figures["collisions"]
    sharing = (
        f"{shared['items']:,} items share {shared['ids']:,} of them" if shared["items"] else "no two items share one"
    )
    rows = [("", "codes used", "of", "entropy", "evenness", "largest code", "items per prefix", "at most")]
    for number, (level, prefix) in enumerate(zip(figures["levels"], figures["prefixes"], strict=True), start=1):
        used = (f"L{number}", f"{level['used']:,}", f"{level['room']:,}", f"{level['entropy']:.2f} bits")
        even = (f"{level['evenness']:.0%}", f"{level['largest_share']:.1%}")
        rows.append((*used, *even, f"{prefix['mean']:,.1f}", f"{prefix['most']:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    neighbours = [_sentence(name, near) for name, near in figures["neighbours"].items() if near is not None]
    return "\n".join([f"semantic IDs of {counted(figures['items'], 'item')}: {sharing}", *table, *neighbours])


def _sentence(name: str, near: Mapping[str, Any]) -> str:
    fractions = [
        f"{near[f'share_{prefix}']:.1%} share {text} (at random {near[f'random_{prefix}']:.1%})"
        for prefix, text in (("l1", "L1"), ("l1_l2", "L1 and L2"))
    ]
    return f"of the {counted(near['count'], 'item')} nearest by {name}, {', '.join(fractions)}"


def prefix_numbers(ids: np.ndarray) -> np.ndarray:
    """int64 (n,): a number for each row, the same for equal rows."""
    return np.unique(ids, axis=0, return_inverse=True)[1].reshape(-1)


def _collisions(ids: np.ndarray) -> dict[str, int]:
    counts = np.bincount(prefix_numbers(ids))
    return {"ids": int((counts > 1).sum()), "items": int(counts[counts > 1].sum())}


def _level(codes: np.ndarray, size: int) -> dict[str, Any]:
    counts = np.unique(codes, return_counts=True)[1]
    frequency = counts / counts.sum()
    entropy = float((frequency * -np.log2(frequency)).sum()) + 0.0  # not −0.0 for a single code
    return {
        "used": len(counts),
        "room": size - NUM_SPECIAL_IDS,
        "entropy": round(entropy, 4),
        "evenness": round(entropy / float(np.log2(len(counts))), 4) if len(counts) > 1 else 1.0,
        "largest_share": round(float(frequency.max()), 4),
    }


def _prefix(ids: np.ndarray) -> dict[str, Any]:
    counts = np.bincount(prefix_numbers(ids))
    return {"used": len(counts), "mean": round(float(counts.mean()), 3), "most": int(counts.max())}


def _neighbours(ids: np.ndarray, vectors: np.ndarray, seed: int) -> dict[str, Any] | None:
    """For a sample: the fraction of cosine-nearest items with the same prefix; None with fewer than two vectors."""
    known = np.flatnonzero(np.linalg.norm(vectors, axis=1) > 0)
    count = min(NEIGHBOURS, len(known) - 1)
    if count < 1:
        return None
    unit = normalize(vectors[known])
    sample = np.random.default_rng(seed).permutation(len(known))[:SAMPLE]
    nearest = np.concatenate([_nearest(unit, sample[at : at + BLOCK], count) for at in range(0, len(sample), BLOCK)])
    figures: dict[str, Any] = {"count": count}
    for name, levels in (("l1", 1), ("l1_l2", 2)):
        prefix = prefix_numbers(ids[known, :levels])
        figures[f"share_{name}"] = round(float((prefix[nearest] == prefix[sample][:, None]).mean()), 4)
        counts = np.bincount(prefix).astype(np.float64)
        figures[f"random_{name}"] = round(float((counts * (counts - 1)).sum() / (len(known) * (len(known) - 1))), 4)
    return figures


def _nearest(unit: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """int64 (m, count): for each of the m `rows` of `unit`, the nearest other rows of `unit`."""
    similarity = unit[rows] @ unit.T
    similarity[np.arange(len(rows)), rows] = -np.inf
    return np.argpartition(-similarity, count - 1, axis=1)[:, :count]
