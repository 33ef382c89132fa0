"""Baselines that order the held-out users' pairs by one number per film, computed from the training users."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ugt_composer.catalogue.catalogue import Catalogue

LIKED = 4.0
PRIOR = 2  # ratings with the overall mean that are added to each film's own ratings


def pair_accuracies(ratings: Path, columns: Mapping[str, str], catalogue: Path, pairs: Path) -> dict[str, float]:
    """For each baseline, the fraction of pairs (chosen, rejected) that it orders as the user did; ties count half.

    Args:
        ratings: a CSV file; rows without a valid rating are skipped.
        columns: the names of its columns for "user", "item" and "rating".
        pairs: preference rows of held-out users, whose ratings are excluded.
    """
    import polars as pl  # here, because other benchmarks import this module, and need no tables

    names = {item.triple: item.item_id for item in Catalogue.load(catalogue).items}
    rows = [json.loads(line) for line in pairs.read_text("utf-8").splitlines()]
    types = {columns["user"]: pl.String, columns["item"]: pl.String, columns["rating"]: pl.Float64}
    table = pl.read_csv(ratings, columns=list(types), schema_overrides=types, ignore_errors=True)
    table = table.select(user=columns["user"], item=columns["item"], rating=columns["rating"]).drop_nulls()
    table = table.filter(~pl.col("user").is_in(list({row["user_id"] for row in rows})))
    mean = table["rating"].mean()
    films = table.group_by("item").agg(
        likes=(pl.col("rating") >= LIKED).sum(),
        mean=(pl.col("rating").sum() + PRIOR * mean) / (pl.len() + PRIOR),
    )
    likes, means = (dict(films.select("item", column).iter_rows()) for column in ("likes", "mean"))

    def accuracy(score: dict[str, float], unknown: float) -> float:
        correct = []
        for row in rows:
            chosen, *rejected = (
                score.get(names[item["l1_id"], item["l2_id"], item["l3_id"]], unknown)
                for item in (row["chosen_item"], *row["rejected_items"])
            )
            correct += [(chosen > other) + 0.5 * (chosen == other) for other in rejected]
        return float(np.mean(correct))

    return {"number of users who like a film": accuracy(likes, 0), "a film's mean rating": accuracy(means, mean)}
