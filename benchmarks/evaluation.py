"""Claim: an evaluation's metrics take negligible time next to generation, and far less than with loops over lists.

The loops compute the same metrics at the same cut-offs from Python lists of recommended ids, for all users at once, and
look up the rank of a target once for all metrics. Ours accumulate the metrics batch by batch, as an evaluation during
training does. One core, a catalogue of 12,101 items, 50 recommendations per user.

    python benchmarks/evaluation.py [--users 4096] [--repetitions 5]
"""

import argparse
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import Claim, in_turns, report, seconds
from benchmarks.recommendation import BEAMS, K, make_items, make_recommender, make_rows
from ugt_composer.generation.beam_search import Recommendations
from ugt_composer.metrics.batch import EvaluationBatch, rank_batch
from ugt_composer.metrics.torch_metrics import evaluation_metrics
from ugt_composer.vocabulary import LEVELS

K_VALUES = (5, 10, 20, 50)
ITEMS = 12_101
BATCH = 512


def looped(recommendations: Recommendations, targets: torch.Tensor) -> dict[str, float]:
    """One relevant item per row, as most scripts compute it: one row, metric and cut-off at a time."""
    lists = [[tuple(item) for item in row] for row in recommendations.ids.tolist()]
    target_items = [tuple(target) for target in targets[:, 0].tolist()]
    values: dict[str, float] = {}
    ranks = [row.index(target) + 1 if target in row else None for row, target in zip(lists, target_items, strict=True)]
    values["mrr"] = sum(1 / rank for rank in ranks if rank) / len(lists)
    for k in K_VALUES:
        hits = [rank for rank in ranks if rank and rank <= k]
        values[f"recall@{k}"] = values[f"hit_rate@{k}"] = len(hits) / len(lists)
        values[f"ndcg@{k}"] = sum(1 / math.log2(rank + 1) for rank in hits) / len(lists)
        for name, levels in (("hit_rate_l1", 1), ("hit_rate_l1_l2", 2)):
            same = [
                any(item[:levels] == t[:levels] for item in row[:k]) for row, t in zip(lists, target_items, strict=True)
            ]
            values[f"{name}@{k}"] = sum(same) / len(lists)
        values[f"diversity@{k}"] = sum(len({item[0] for item in row[:k]}) / k for row in lists) / len(lists)
        counter = Counter(item for row in lists for item in row[:k])
        values[f"coverage@{k}"] = len(counter) / ITEMS
        counts = [0] * (ITEMS - len(counter)) + sorted(counter.values())
        ranked = sum((2 * place - ITEMS - 1) * count for place, count in enumerate(counts, start=1))
        values[f"gini@{k}"] = ranked / (ITEMS * sum(counts))
    return values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=4096)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    items = make_items(ITEMS)
    recommender, rows = make_recommender(items), make_rows(items, arguments.users)
    recommendations = recommender.recommend(rows, K, BEAMS, exclude_seen=True)
    targets = recommendations.ids[:, arguments.users % 7 : arguments.users % 7 + 1].clone()
    targets[::2] = torch.from_numpy(np.resize(items, (len(targets[::2]), LEVELS)))[:, None]
    parts = zip(*(tensor.split(BATCH) for tensor in (*recommendations, targets)), strict=True)
    batches = [(Recommendations(*part), part_targets) for *part, part_targets in parts]
    metrics = evaluation_metrics((), {}, K_VALUES, ITEMS)
    del metrics["preference_accuracy"]
    no_losses, no_pairs = torch.zeros(0), torch.zeros(2)

    def ours() -> dict[str, float]:
        for metric in metrics.values():
            metric.reset()
        for part, part_targets in batches:
            valid = torch.ones(len(part_targets), dtype=torch.bool)
            ranked = rank_batch(part, part_targets, valid[:, None], valid)
            evaluated = EvaluationBatch(ranked, no_losses, no_losses, no_pairs)
            for metric in metrics.values():
                metric.update(evaluated)
        return {name: float(metric.compute()) for name, metric in metrics.items()}

    values, expected = ours(), looped(recommendations, targets)
    assert values.keys() == expected.keys()
    same = all(math.isclose(values[name], expected[name], rel_tol=1e-5, abs_tol=1e-7) for name in values)
    assert same, (values, expected)
    ratio, fast, slow = in_turns(ours, lambda: looped(recommendations, targets), arguments.repetitions)
    generation = seconds(lambda: recommender.recommend(rows, K, BEAMS, exclude_seen=True))
    what = f"all metrics of {arguments.users:,} users"
    note = f"{1000 * fast:.0f} ms and {1000 * slow:.0f} ms"
    return report(
        __file__,
        [
            Claim(f"{what}: speed", "loops over lists", 1 / ratio, 20, at_least=True, note=note),
            Claim(f"{what}: time", "generation's", fast / generation, 0.1, at_least=False, note=f"{generation:.1f} s"),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
