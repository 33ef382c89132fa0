"""Which item of a row is chosen and which are rejected, where a model makes the preference rows itself.

Chosen is what the user took, the row's target; rejected are the model's highest-ranked other items, best first: what
it orders wrongly now, or nearly so (self-play with the data as the winner: Chen et al. 2024, SPIN). Later targets of
the row, which the user took soon after, are never rejected.

With rewards, both are picked from the target and the model's `candidates` highest-ranked other items: chosen is the one
with the highest reward, rejected are those with the lowest ones, lowest first, all of them below the chosen one's.
Equal rewards are ordered as the target first, then by the model's rank.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ugt_composer.conversion.canonical import BOS_TOKEN
from ugt_composer.data.codec import IDS, LABELS, POSITION, TOKEN_TYPE, Row
from ugt_composer.data.history import SemanticId
from ugt_composer.inference.rewards import ItemRewards
from ugt_composer.jsonl import schema
from ugt_composer.vocabulary import ITEM, NUM_SPECIAL_IDS

SMALLEST_SCORE = 1e-6  # a preference_score must be above 0


@dataclass(frozen=True)
class Selection:
    """How chosen and rejected items are selected.

    Attributes:
        rejected: the largest number of rejected items of a row.
        rewards: None: the target is chosen.
        candidates: with rewards, how many of the model's highest-ranked other items they choose from.
        reward_scale: with rewards, preference_score = tanh(gap / (2 · reward_scale)), where gap is the chosen item's
            reward minus the mean of the rejected ones': 2p - 1 for the probability p = sigmoid(gap / reward_scale) that
            the chosen item is preferred (Bradley and Terry 1952). None: 1.
    """

    rejected: int = 20
    rewards: ItemRewards | None = None
    candidates: int = 40
    reward_scale: float | None = None

    @property
    def list_size(self) -> int:
        """How many items the model's lists need."""
        return self.rejected if self.rewards is None else self.candidates

    def of(self, row: Row, target: SemanticId, others: Sequence[SemanticId]) -> Row | None:
        """The preference row of a recommend row; None if no item can be rejected.

        Args:
            others: the model's highest-ranked items besides the targets, best first.
        """
        if self.rewards is None:
            return _preference_row(row, target, others[: self.rejected], 1.0) if others else None
        history = [(l1, l2, l3) for l1, l2, l3 in row.encoder[row.encoder[:, TOKEN_TYPE] == ITEM, IDS].tolist()]
        candidates = [target, *others[: self.candidates]]
        values = self.rewards.of(row.user_id, history, candidates)
        best = max(range(len(values)), key=lambda at: values[at])  # the first of equal ones
        worse = [at for at in range(len(values)) if values[at] < values[best]]
        worse = sorted(worse, key=lambda at: values[at])[: self.rejected]  # stable
        if not worse:
            return None
        score = 1.0
        if self.reward_scale is not None:
            gap = values[best] - math.fsum(values[at] for at in worse) / len(worse)
            score = max(math.tanh(gap / (2 * self.reward_scale)), SMALLEST_SCORE)
        return _preference_row(row, candidates[best], [candidates[at] for at in worse], score)


def targets_of(row: Row) -> list[SemanticId]:
    """The items that a recommend row is to predict, nearest first. The first is (-100, …) or a special id where the row
    has no target at its start."""
    labels = row.decoder[:, LABELS]
    is_item = (labels >= NUM_SPECIAL_IDS).all(axis=1)
    is_item[0] = True
    return [(l1, l2, l3) for l1, l2, l3 in labels[is_item].tolist()]


def _preference_row(row: Row, chosen: SemanticId, rejected: Sequence[SemanticId], score: float) -> Row:
    """The row as `ugt convert --kind preference` stores it."""
    return replace(
        row,
        decoder=np.array([[*BOS_TOKEN, *chosen]], np.int64),
        rejected=np.array(rejected, np.int64),
        preference_score=score,
        reference=None,
        members=None,
        decoder_times=None if row.decoder_times is None else row.decoder_times[:1],
    )


def json_row(row: Row) -> dict[str, Any]:
    """A preference row as an object of JSON Lines, which converts to the same packed row."""
    tokens = row.encoder
    columns = [*tokens[:, IDS].T, tokens[:, POSITION], tokens[:, TOKEN_TYPE], np.ones(len(tokens), np.int64)]
    sequence: dict[str, Any] = {key: values.tolist() for key, values in zip(schema.ENCODER_KEYS, columns, strict=True)}
    if row.encoder_actions is not None:
        sequence[schema.ENCODER_ACTIONS] = row.encoder_actions.tolist()
    if row.encoder_times is not None:
        sequence[schema.ENCODER_TIMES] = _without_gaps(row.encoder_times).tolist()
    chosen, *rejected = (
        dict(zip(schema.ITEM_KEYS, ids, strict=True))
        for ids in [row.decoder[0, LABELS].tolist(), *row.rejected.tolist()]
    )
    entry: dict[str, Any] = {schema.USER: row.user_id, schema.SEQUENCE: sequence, schema.CHOSEN: chosen}
    entry[schema.REJECTED_LIST] = rejected
    if row.decoder_times is not None:
        entry[schema.DECODER_TIMES] = int(row.decoder_times[0])
    if row.preference_score != 1.0:
        entry[schema.SCORE] = row.preference_score
    return entry


def _without_gaps(times: np.ndarray) -> np.ndarray:
    """int64 (S,): a user token, whose time is stored as unknown, gets one that keeps the times in order."""
    known = times >= 0
    return np.maximum.accumulate(np.where(known, times, times[known][0] if known.any() else 0))
