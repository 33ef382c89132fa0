"""Converts a checked row to what the model sees, one row at a time; `bulk_rows.py` does the same for many rows at once.

The decoder's input starts with BOS. Its labels depend on the labels in the file:

    aligned          every label is the id at its own position: the labels are the targets, so the inputs are shifted
                     to one position behind them. A leading BOS in the file is not a target and is dropped.
    starts_with_bos  the file has a leading BOS and labels that differ from the ids: its input-label pairs are kept.
    shifted          otherwise: BOS is put in front with the first token as its label; the file's pairs are kept.

Decoder positions count from BOS at 0, whatever the first position in the file is.
"""

from dataclasses import dataclass

import numpy as np

from ugt_composer.conversion.counts import ALIGNED, SHIFTED, STARTS_WITH_BOS, Counts
from ugt_composer.conversion.rows import CheckedRow
from ugt_composer.conversion.settings import Settings
from ugt_composer.data.codec import DECODER_COLUMNS, ENCODER_COLUMNS, REJECTED_COLUMNS, UNKNOWN_TIME, Row
from ugt_composer.jsonl.bad_row import BadRow, shown
from ugt_composer.jsonl.schema import (
    DECODER_KEYS,
    DECODER_TIMES,
    ENCODER_KEYS,
    MASK,
    MEMBERS,
    POSITIONS,
    PREFERENCE,
    SEQUENCE,
    TOKEN_TYPES,
)
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
    """The row as stored. Adds to `counts`, unless it raises BadRow for a large position or a decoder without target."""
    prefix = f"{SEQUENCE}." if settings.kind == PREFERENCE else ""
    new_counts = Counts(rows=1)
    encoder = _encoder(row, prefix + ENCODER_KEYS[POSITIONS], settings, new_counts)
    new_counts.incomplete_histories = int(new_counts.truncated_histories or row.earlier_items > 0)
    if row.chosen is None:
        decoder = _decoder(row, settings, new_counts)
    else:
        decoder = [Token(BOS_TOKEN, list(row.chosen))]
        new_counts.largest_decoder_position = 0
        new_counts.rejected_lengths[len(row.rejected)] += 1
    new_counts.encoder_lengths[len(encoder)] += 1
    new_counts.decoder_lengths[len(decoder)] += 1
    new_counts.all_labels_ignored = int(all(token.labels == IGNORED_LABELS for token in decoder))
    new_counts.ignored_keys.update(row.ignored_keys)
    tokens = np.array(encoder, np.int64).reshape(-1, ENCODER_COLUMNS + 2)
    inputs = {
        "encoder_actions": None if row.inputs.encoder_actions is None else tokens[:, ENCODER_COLUMNS],
        "encoder_times": None if row.inputs.encoder_times is None else tokens[:, ENCODER_COLUMNS + 1],
        "decoder_times": _target_times(row, settings, new_counts),
    }
    members = None if row.members is None else _of_targets(row.members, MEMBERS, row, settings, new_counts)
    new_counts.add_inputs(1, *inputs.values())
    counts.add(new_counts)
    return Row(
        user_id=row.user_id,
        encoder=tokens[:, :ENCODER_COLUMNS],
        decoder=np.array([token.values + token.labels for token in decoder], np.int64).reshape(-1, DECODER_COLUMNS),
        rejected=np.array(row.rejected, np.int64).reshape(-1, REJECTED_COLUMNS),
        preference_score=row.preference_score,
        members=members,
        **inputs,
    )


def _encoder(row: CheckedRow, name: str, settings: Settings, new_counts: Counts) -> list[list[int]]:
    """Tokens (l1, l2, l3, position, token type, action, time) of the positions whose mask is 1."""
    length = len(row.encoder[MASK])
    actions = row.inputs.encoder_actions or [0] * length
    times = row.inputs.encoder_times or [UNKNOWN_TIME] * length
    times = [UNKNOWN_TIME if kind == USER else time for kind, time in zip(row.encoder[TOKEN_TYPES], times, strict=True)]
    columns = zip(*row.encoder[:MASK], actions, times, strict=True)
    tokens = [list(token) for token, mask in zip(columns, row.encoder[MASK], strict=True) if mask]
    new_counts.masked_encoder = length - len(tokens)
    if len(tokens) > settings.max_history:
        new_counts.truncated_histories = 1
        tokens = _most_recent(tokens, settings.max_history)
    new_counts.largest_encoder_position = _check_positions(tokens, name, settings)
    return tokens


def _most_recent(tokens: list[list[int]], size: int) -> list[list[int]]:
    """Truncates to `size` tokens: the leading user token, if there is one, and the last of the others.

    Positions of the others decrease by a constant, so that the smallest stays the same as before the cut.
    """
    front = tokens[:1] if tokens[0][TOKEN_TYPES] == USER else []
    others = tokens[len(front) :]
    kept = others[len(others) - (size - len(front)) :]
    if not kept:
        return front
    shift = min(token[POSITIONS] for token in kept) - min(token[POSITIONS] for token in others)
    return front + [[*token[:POSITIONS], token[POSITIONS] - shift, *token[TOKEN_TYPES:]] for token in kept]


def _decoder(row: CheckedRow, settings: Settings, new_counts: Counts) -> list[Token]:
    tokens = [
        Token(list(values[:MASK]), list(labels))
        for values, labels in zip(zip(*row.decoder, strict=True), zip(*row.labels, strict=True), strict=True)
        if values[MASK]
    ]
    new_counts.masked_decoder = len(row.labels[0]) - len(tokens)
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
    new_counts.forms[form] += 1
    new_counts.truncated_targets = int(len(labels) > settings.max_target)
    # The last token of an aligned row is no input.
    pairs = list(zip(inputs, labels, strict=False))[: settings.max_target]
    new_counts.largest_decoder_position = _check_positions(
        [values for values, _ in pairs], DECODER_KEYS[POSITIONS], settings, "counted from BOS at 0, "
    )
    return [Token(values, labels) for values, labels in pairs]


def _target_times(row: CheckedRow, settings: Settings, new_counts: Counts) -> np.ndarray | None:
    """int64 (T,) as stored."""
    times = row.inputs.decoder_times
    if times is None:
        return None
    return np.array(times) if row.chosen else _of_targets(times, DECODER_TIMES, row, settings, new_counts)


def _of_targets(values: list[int], name: str, row: CheckedRow, settings: Settings, new_counts: Counts) -> np.ndarray:
    """int64 (T,) as stored. They belong to the targets, so the row has to be of the aligned form."""
    if not new_counts.forms[ALIGNED]:
        raise BadRow(name, "labels are not the targets", "labels that differ from the decoder ids", "equal ones")
    tokens = zip(*row.decoder, values, strict=True)
    kept = [(token[:LEVELS], token[-1]) for token in tokens if token[MASK]]
    if list(kept[0][0]) == BOS_TOKEN[:LEVELS]:
        del kept[0]
    return np.array([value for _, value in kept[: settings.max_target]], np.int64)


def _is_aligned(tokens: list[Token]) -> bool:
    """Whether there are labels and each equals the id at its own position and level."""
    pairs = [
        (label, level_id)
        for token in tokens
        for label, level_id in zip(token.labels, token.ids, strict=True)
        if label != IGNORE_INDEX
    ]
    return bool(pairs) and all(label == level_id for label, level_id in pairs)


def _check_positions(tokens: list[list[int]], name: str, settings: Settings, note: str = "") -> int:
    largest = max(token[POSITIONS] for token in tokens)
    if largest >= settings.max_positions:
        expected = f"{note}at most {settings.max_positions - 1} (--max-positions {settings.max_positions})"
        raise BadRow(name, "out of range", shown(largest), expected)
    return largest
