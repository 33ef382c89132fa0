"""From a checked row to what the model sees, one row at a time. `chunks.py` does the same to many rows at once.

The decoder's input starts with BOS. Which labels it gets depends on what the labels of the file are:

    aligned          every label is the id at its own position: the labels are the targets, so the inputs move one
                     position behind them. A BOS that the file has in front is no target and goes.
    starts_with_bos  the file has BOS in front and labels that differ from the ids: its own pairs stay.
    shifted          otherwise: BOS comes in front and gets the first token as its label; the file's own pairs stay.

Positions of the decoder count from BOS at 0, whatever the file's first position is.
"""

from dataclasses import dataclass

import numpy as np

from ugt_composer.conversion.counts import ALIGNED, SHIFTED, STARTS_WITH_BOS, Counts
from ugt_composer.conversion.rows import CheckedRow
from ugt_composer.conversion.settings import PREFERENCE, Settings
from ugt_composer.data.codec import DECODER_COLUMNS, ENCODER_COLUMNS, REJECTED_COLUMNS, Row
from ugt_composer.jsonl.bad_row import BadRow, shown
from ugt_composer.jsonl.schema import DECODER_KEYS, ENCODER_KEYS, MASK, POSITIONS, SEQUENCE, TOKEN_TYPES
from ugt_composer.vocabulary import BOS, IGNORE_INDEX, ITEM, LEVELS, NUM_SPECIAL_IDS, USER

BOS_TOKEN = [BOS] * LEVELS + [0, ITEM]  # ids, position, token type
IGNORED_LABELS = [IGNORE_INDEX] * LEVELS


@dataclass
class Token:
    """A decoder position: l1, l2, l3, position, token type, and the labels of the three levels."""

    values: list[int]
    labels: list[int]

    @property
    def ids(self) -> list[int]:
        return self.values[:LEVELS]


def canonical_row(row: CheckedRow, settings: Settings, counts: Counts) -> Row:
    """The row as it is stored; `counts` is added to only where the row is good. Raises BadRow for a position."""
    prefix = f"{SEQUENCE}." if settings.kind == PREFERENCE else ""
    found = Counts(rows=1)
    encoder = _encoder(row.encoder, prefix + ENCODER_KEYS[POSITIONS], settings, found)
    if row.chosen is None:
        decoder = _decoder(row, settings, found)
    else:
        decoder = [Token(BOS_TOKEN, list(row.chosen))]
        found.largest_decoder_position = 0
        found.rejected_lengths[len(row.rejected)] += 1
    found.encoder_lengths[len(encoder)] += 1
    found.decoder_lengths[len(decoder)] += 1
    found.all_labels_ignored = int(all(token.labels == IGNORED_LABELS for token in decoder))
    found.ignored_keys.update(row.ignored_keys)
    counts.add(found)
    return Row(
        user_id=row.user_id,
        encoder=np.array(encoder, np.int64).reshape(-1, ENCODER_COLUMNS),
        decoder=np.array([token.values + token.labels for token in decoder], np.int64).reshape(-1, DECODER_COLUMNS),
        rejected=np.array(row.rejected, np.int64).reshape(-1, REJECTED_COLUMNS),
        preference_score=row.preference_score,
    )


def _valid(columns: list[list[int]]) -> list[list[int]]:
    """Tokens (l1, l2, l3, position, token type) of the positions whose mask is 1."""
    return [list(token[:MASK]) for token in zip(*columns, strict=True) if token[MASK]]


def _encoder(columns: list[list[int]], name: str, settings: Settings, found: Counts) -> list[list[int]]:
    tokens = _valid(columns)
    found.masked_encoder = len(columns[MASK]) - len(tokens)
    if len(tokens) > settings.max_history:
        found.truncated_histories = 1
        tokens = _most_recent(tokens, settings.max_history)
    found.largest_encoder_position = _check_positions(tokens, name, settings)
    return tokens


def _most_recent(tokens: list[list[int]], size: int) -> list[list[int]]:
    """The user token, if there is one in front, and the last of the others.

    Positions of the others move down by a constant, so that the smallest is what it was before the cut.
    """
    front = tokens[:1] if tokens[0][TOKEN_TYPES] == USER else []
    others = tokens[len(front) :]
    kept = others[len(others) - (size - len(front)) :]
    if not kept:
        return front
    moved = min(token[POSITIONS] for token in kept) - min(token[POSITIONS] for token in others)
    return front + [[*token[:POSITIONS], token[POSITIONS] - moved, token[TOKEN_TYPES]] for token in kept]


def _decoder(row: CheckedRow, settings: Settings, found: Counts) -> list[Token]:
    tokens = [
        Token(list(values[:MASK]), list(labels))
        for values, labels in zip(zip(*row.decoder, strict=True), zip(*row.labels, strict=True), strict=True)
        if values[MASK]
    ]
    found.masked_decoder = len(row.labels[0]) - len(tokens)
    has_bos = tokens[0].ids == BOS_TOKEN[:LEVELS]
    targets = tokens[has_bos:]
    smallest = min((token.values[POSITIONS] for token in targets), default=0)
    inputs = [BOS_TOKEN] + [
        [*token.ids, token.values[POSITIONS] - smallest + 1, token.values[TOKEN_TYPES]] for token in targets
    ]
    if _is_aligned(tokens):
        form = ALIGNED
        labels = [token.labels for token in targets]
        if not labels:
            raise BadRow(DECODER_KEYS[0], "empty", "nothing but BOS", "at least one item to predict")
    elif has_bos:
        form = STARTS_WITH_BOS
        labels = [token.labels for token in tokens]
    else:
        form = SHIFTED
        first = [level_id if level_id >= NUM_SPECIAL_IDS else IGNORE_INDEX for level_id in tokens[0].ids]
        labels = [first] + [token.labels for token in tokens]
    found.forms[form] += 1
    found.truncated_targets = int(len(labels) > settings.max_target)
    pairs = list(zip(inputs, labels, strict=False))[: settings.max_target]  # an aligned row's last token is no input
    found.largest_decoder_position = _check_positions(
        [values for values, _ in pairs], DECODER_KEYS[POSITIONS], settings, "counted from BOS at 0, "
    )
    return [Token(values, labels) for values, labels in pairs]


def _is_aligned(tokens: list[Token]) -> bool:
    """Whether there are labels and each is the id at its own position and level."""
    pairs = [
        (label, level_id)
        for token in tokens
        for label, level_id in zip(token.labels, token.ids, strict=True)
        if label != IGNORE_INDEX
    ]
    return bool(pairs) and all(label == level_id for label, level_id in pairs)


def _check_positions(tokens: list[list[int]], name: str, settings: Settings, how: str = "") -> int:
    largest = max(token[POSITIONS] for token in tokens)
    if largest >= settings.max_positions:
        expected = f"{how}at most {settings.max_positions - 1} (--max-positions {settings.max_positions})"
        raise BadRow(name, "out of range", shown(largest), expected)
    return largest
