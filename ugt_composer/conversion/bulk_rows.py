"""Checks and converts many parsed rows at once: the vectorised counterpart of `rows.py` and `canonical.py`.

Anything wrong or rare raises IrregularRows; those rows are then converted one by one, which gives the reasons.
Shapes: R rows, n history or target tokens of all rows together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from ugt_composer.conversion.bulk_actions_and_times import (
    HistoryInputs,
    read_choice_times,
    read_history_inputs,
    read_target_times,
    stored_times,
)
from ugt_composer.conversion.bulk_parse import ParsedRows
from ugt_composer.conversion.canonical import BOS_TOKEN
from ugt_composer.conversion.columns import END, END_BYTE, IrregularRows, RawLists, read_digits, read_integers
from ugt_composer.conversion.counts import ALIGNED, FORMS, Counts
from ugt_composer.conversion.rows import LARGEST_EARLIER
from ugt_composer.conversion.settings import LARGEST_COUNT, LARGEST_POSITION, Settings
from ugt_composer.data.codec import DECODER_COLUMNS, DTYPES, ENCODER_COLUMNS, LARGEST_MEMBER, REJECTED_COLUMNS
from ugt_composer.data.row_batch import RowBatch
from ugt_composer.jsonl.schema import MASK, POSITIONS, TOKEN_TYPES
from ugt_composer.vocabulary import BOS, IGNORE_INDEX, LEVELS, NUM_SPECIAL_IDS, NUM_TOKEN_TYPES, USER


def convert_rows(parsed: ParsedRows, settings: Settings, counts: Counts) -> RowBatch:
    """Raises IrregularRows, without changing `counts`, unless all rows are valid."""
    new_counts = Counts(rows=len(parsed.users))
    users = [user.encode("utf-8") for user in parsed.users]
    if max(map(len, users)) > LARGEST_COUNT:
        raise IrregularRows
    encoder, encoder_lengths, inputs = _encoder(parsed, settings, new_counts)
    if parsed.decoder:
        decoder, decoder_lengths, target_times = _decoder(parsed, inputs.latest, settings, new_counts)
    else:
        decoder, decoder_lengths = _chosen(parsed, settings, new_counts)
        target_times = read_choice_times(parsed.target_times, inputs.latest) if parsed.target_times else None
    new_counts.add_inputs(len(users), inputs.actions, inputs.times, target_times)
    members = _members(parsed, decoder_lengths, new_counts) if parsed.members else None
    rejected, rejected_lengths = _rejected(parsed, settings, new_counts)
    new_counts.encoder_lengths.update(_histogram(encoder_lengths))
    new_counts.decoder_lengths.update(_histogram(decoder_lengths))
    new_counts.ignored_keys.update(parsed.ignored_keys)
    counts.add(new_counts)
    return RowBatch(
        users,
        encoder,
        decoder,
        rejected,
        encoder_lengths,
        decoder_lengths,
        rejected_lengths,
        np.array(parsed.scores, np.float32) if parsed.scores else np.ones(len(users), np.float32),
        members,
        encoder_actions=None if inputs.actions is None else inputs.actions.astype(DTYPES[settings.width]),
        encoder_times=None if inputs.times is None else stored_times(inputs.times),
        decoder_times=None if target_times is None else stored_times(target_times),
    )


def _members(parsed: ParsedRows, decoder_lengths: np.ndarray, new_counts: Counts) -> np.ndarray:
    """uint32 (n,) as stored, if all rows are aligned, complete, and have members."""
    lists = parsed.members
    if any(values is msgspec.UNSET for values in lists) or new_counts.masked_decoder or new_counts.truncated_targets:
        raise IrregularRows
    lengths = [len(values) for values in lists]
    # Equal lengths also mean that no row has a leading BOS, which would not be stored.
    if new_counts.forms[ALIGNED] < len(lists) or lengths != decoder_lengths.tolist():
        raise IrregularRows
    values = [value for row in lists for value in row]
    if not 0 <= min(values) <= max(values) <= LARGEST_MEMBER:
        raise IrregularRows
    return np.array(values, "<u4")


def _histogram(lengths: np.ndarray) -> dict[int, int]:
    values, rows = np.unique(lengths, return_counts=True)
    return dict(zip(values.tolist(), rows.tolist(), strict=True))


@dataclass
class Side:
    """The encoder or decoder of R rows as in the file, in columns of n + R slots (see `columns.py`).

    Attributes:
        ids: int64 (3, n + R).
        positions: int64 (n + R,).
        token_types: uint8 (n + R,).
        mask: bool (n + R,), False in the extra slots.
        ends: (R,) indices of the extra slots.
        labels: int64 (3, n + R), ignored in the extra slots; for a decoder only.
    """

    ids: np.ndarray
    positions: np.ndarray
    token_types: np.ndarray
    mask: np.ndarray
    ends: np.ndarray
    labels: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        return np.concatenate(([0], self.ends[:-1] + 1))

    def lengths(self) -> np.ndarray:
        """(R,) valid positions per row. Raises IrregularRows if a row has none."""
        lengths = np.add.reduceat(self.mask, self.starts, dtype=np.int64)
        if lengths.min() == 0:
            raise IrregularRows
        return lengths

    def masked_out(self) -> int:
        return len(self.mask) - len(self.ends) - int(self.mask.sum())


def _read_side(lists: Sequence[RawLists], labels: Sequence[RawLists], settings: Settings) -> Side:
    """Reads all values and checks them, except that positions fit the model."""
    numbers = read_integers([*lists[:TOKEN_TYPES], *labels])
    digits = read_digits(lists[TOKEN_TYPES:])
    ends = np.flatnonzero(numbers[0] == END)
    if digits.shape[1] != numbers.shape[1] or (digits[0, ends] != END_BYTE).any():
        raise IrregularRows
    numbers[:TOKEN_TYPES, ends] = 0
    numbers[TOKEN_TYPES:, ends] = IGNORE_INDEX
    digits[:, ends] = 0
    sizes = np.array(settings.codebook_sizes)
    largest = numbers.max(axis=1)
    if (
        numbers[:TOKEN_TYPES].min() < 0
        or (largest[:LEVELS] >= sizes).any()
        or largest[POSITIONS] > LARGEST_POSITION
        or (digits.max(axis=1) >= (NUM_TOKEN_TYPES, 2)).any()
        or (len(labels) and (largest[TOKEN_TYPES:] >= sizes).any())
        or ((numbers[TOKEN_TYPES:] < 0) & (numbers[TOKEN_TYPES:] != IGNORE_INDEX)).any()
    ):
        raise IrregularRows
    return Side(numbers[:LEVELS], numbers[POSITIONS], digits[0], digits[1].astype(bool), ends, numbers[TOKEN_TYPES:])


def _encoder(
    parsed: ParsedRows, settings: Settings, new_counts: Counts
) -> tuple[np.ndarray, np.ndarray, HistoryInputs]:
    """(n, 5) as stored, (R,) tokens per row, and the actions (n,) and times (n,) of these tokens."""
    earlier = parsed.earlier
    if earlier and not 0 <= min(earlier) <= max(earlier) <= LARGEST_EARLIER:
        raise IrregularRows
    side = _read_side(parsed.encoder, [], settings)
    inputs = read_history_inputs(parsed, side.mask, side.token_types, side.ends, settings)
    lengths = side.lengths()
    new_counts.masked_encoder = side.masked_out()
    long_rows = np.flatnonzero(lengths > settings.max_history)
    for row in long_rows:  # a Python loop: cutting a row costs far less than parsing it
        _keep_most_recent(side, slice(side.starts[row], side.ends[row]), settings.max_history)
    new_counts.incomplete_histories = len({*long_rows.tolist(), *np.flatnonzero(earlier).tolist()})
    if len(long_rows):
        new_counts.truncated_histories = len(long_rows)
        lengths = side.lengths()
    new_counts.largest_encoder_position = int(side.positions.max(where=side.mask, initial=0))
    if new_counts.largest_encoder_position >= settings.max_positions:
        raise IrregularRows
    stored = np.empty((len(side.mask), ENCODER_COLUMNS), DTYPES[settings.width])
    for column, values in enumerate((*side.ids, side.positions, side.token_types)):
        stored[:, column] = values
    return _masked(stored, side.mask), lengths, inputs.kept(side.mask)


def _masked(table: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`table[mask]`, with each row viewed as a single value, which is ten times as fast in NumPy."""
    whole_rows = table.view(np.dtype((np.void, table.itemsize * table.shape[1])))[:, 0]
    return whole_rows[mask].view(table.dtype).reshape(-1, table.shape[1])


def _keep_most_recent(side: Side, row: slice, size: int) -> None:
    """Truncates one row in place, like `canonical._most_recent`."""
    valid = np.flatnonzero(side.mask[row]) + row.start
    front = int(side.token_types[valid[0]] == USER)
    others = valid[front:]
    kept = others[len(others) - (size - front) :]
    side.mask[others] = False
    side.mask[kept] = True
    if len(kept):
        side.positions[kept] -= side.positions[kept].min() - side.positions[others].min()


def _decoder(
    parsed: ParsedRows, latest: np.ndarray, settings: Settings, new_counts: Counts
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(n, 8) as stored, (R,) tokens per row, and (n,) times of the targets or None. The rules are those of
    `canonical.py`.

    Args:
        latest: (R,) the time of the last event of each history.
    """
    side = _read_side(parsed.decoder, parsed.labels, settings)
    token_counts = side.lengths()
    new_counts.masked_decoder = side.masked_out()
    tokens = np.empty((len(side.mask), DECODER_COLUMNS), np.int32)
    for column, values in enumerate((*side.ids, side.positions, side.token_types, *side.labels)):
        tokens[:, column] = values
    tokens = _masked(tokens, side.mask)
    starts = np.cumsum(token_counts) - token_counts

    has_bos = (tokens[starts, :LEVELS] == BOS).all(axis=1)
    aligned = _aligned(tokens, starts)
    shifted = ~aligned & ~has_bos
    for form, rows in zip(FORMS, (aligned, ~aligned & has_bos, shifted), strict=True):
        new_counts.forms[form] += int(rows.sum())
    full_lengths = token_counts - has_bos + ~aligned
    if full_lengths.min() == 0:  # nothing but BOS
        raise IrregularRows
    lengths = np.minimum(full_lengths, settings.max_target)
    new_counts.truncated_targets = int((full_lengths > lengths).sum())

    # Slot j of a row gets token j - 1 as input (not counting a BOS of the file). Its label is that of token j if the
    # labels are the targets themselves, else that of the input. Slot 0 is set below.
    out_starts = np.cumsum(lengths) - lengths
    first_target = starts + has_bos
    slots = np.arange(int(lengths.sum()))
    input_of = slots + np.repeat(first_target - 1 - out_starts, lengths)
    label_of = slots + np.repeat(np.where(aligned, first_target, starts - shifted) - out_starts, lengths)
    input_of[out_starts] = label_of[out_starts[shifted]] = 0  # placeholder
    out = tokens[input_of]
    out[:, POSITIONS] += np.repeat(1 - _smallest_positions(tokens, starts, has_bos), lengths)
    out[out_starts, :MASK] = BOS_TOKEN
    out[:, MASK:] = tokens[label_of, MASK:]
    first_ids = tokens[starts[shifted], :LEVELS]
    out[out_starts[shifted], MASK:] = np.where(first_ids >= NUM_SPECIAL_IDS, first_ids, IGNORE_INDEX)
    times = None
    if parsed.target_times:
        is_target = side.mask & (side.ids != BOS).any(axis=0)
        times = read_target_times(parsed.target_times, is_target, side.ends, latest)[side.mask][label_of]
        if not aligned.all():
            raise IrregularRows
    return _stored_decoder(out, out_starts, settings, new_counts), lengths, times


def _aligned(tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(R,) whether a row has labels and each equals the id at its own position and level."""
    labels = tokens[:, MASK:]
    labelled = labels != IGNORE_INDEX
    differs = labelled & (labels != tokens[:, :LEVELS])
    return np.logical_or.reduceat(labelled.any(axis=1), starts) & ~np.logical_or.reduceat(differs.any(axis=1), starts)


def _smallest_positions(tokens: np.ndarray, starts: np.ndarray, has_bos: np.ndarray) -> np.ndarray:
    """(R,) the smallest position of each row's tokens, without a BOS in front."""
    positions = tokens[:, POSITIONS].copy()
    positions[starts[has_bos]] = LARGEST_POSITION
    return np.minimum.reduceat(positions, starts)


def _stored_decoder(out: np.ndarray, starts: np.ndarray, settings: Settings, new_counts: Counts) -> np.ndarray:
    """Checks positions, counts rows without a label, and writes ignored labels as the codec stores them."""
    new_counts.largest_decoder_position = int(out[:, POSITIONS].max())
    if new_counts.largest_decoder_position >= settings.max_positions:
        raise IrregularRows
    ignored = out[:, MASK:] == IGNORE_INDEX
    new_counts.all_labels_ignored = int(np.logical_and.reduceat(ignored.all(axis=1), starts).sum())
    dtype = DTYPES[settings.width]
    stored = out.astype(dtype)
    stored[:, MASK:][ignored] = np.iinfo(dtype).max
    return stored


def _chosen(parsed: ParsedRows, settings: Settings, new_counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Decoders of preference rows: BOS with the chosen item as its label."""
    rows = len(parsed.users)
    decoder = np.empty((rows, DECODER_COLUMNS), DTYPES[settings.width])
    decoder[:, :MASK] = BOS_TOKEN
    decoder[:, MASK:] = _items(parsed.chosen, settings)
    new_counts.largest_decoder_position = 0
    return decoder, np.ones(rows, np.int64)


def _rejected(parsed: ParsedRows, settings: Settings, new_counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    rows, dtype = len(parsed.users), DTYPES[settings.width]
    if not parsed.rejected:
        return np.empty((0, REJECTED_COLUMNS), dtype), np.zeros(rows, np.int64)
    lengths = np.array([len(items) for items in parsed.rejected])
    scores = np.array(parsed.scores)
    if not (
        0 < lengths.min() <= lengths.max() <= LARGEST_COUNT
        and 0 < scores.astype(np.float32).min() <= scores.max() <= 1
        and not any(chosen in items for chosen, items in zip(parsed.chosen, parsed.rejected, strict=True))
    ):
        raise IrregularRows
    new_counts.rejected_lengths.update(_histogram(lengths))
    return _items([item for items in parsed.rejected for item in items], settings).astype(dtype), lengths


def _items(items: list[tuple[int, int, int]], settings: Settings) -> np.ndarray:
    """int64 (n, 3), all ids in range."""
    try:
        values = np.array(items, np.int64)
    except OverflowError:
        raise IrregularRows from None
    if (values < 0).any() or (values >= np.array(settings.codebook_sizes)).any():
        raise IrregularRows
    return values
