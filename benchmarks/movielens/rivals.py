"""What two numbers a film, told by the people that are trained on, say of the pairs of those held out."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from ugt_composer.catalogue.catalogue import Catalogue

LIKED = 4.0
PRIOR = 2  # ratings of the overall mean that each film is given beside its own


def pair_accuracies(ratings: Path, columns: Mapping[str, str], catalogue: Path, pairs: Path) -> dict[str, float]:
    """By rival: the share of pairs (chosen, rejected) that it orders as the user did; equal scores count half.

    Args:
        ratings: a CSV file; rows that are no ratings are left out.
        columns: its columns of "user", "item" and "rating".
        pairs: preference rows of users none of whose ratings is looked at.
    """
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
        found = []
        for row in rows:
            chosen, *rejected = (
                score.get(names[item["l1_id"], item["l2_id"], item["l3_id"]], unknown)
                for item in (row["chosen_item"], *row["rejected_items"])
            )
            found += [(chosen > other) + 0.5 * (chosen == other) for other in rejected]
        return float(np.mean(found))

    return {"how many like a film": accuracy(likes, 0), "a film's mean rating": accuracy(means, mean)}
