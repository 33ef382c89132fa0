"""The counts of a conversion. Partitions count separately; their counts are added in input order."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from ugt_composer.catalogue.outside import ItemCounts
from ugt_composer.data.codec import LARGEST_TIME, UNKNOWN_TIME
from ugt_composer.jsonl.bad_row import shown_name

ALIGNED, STARTS_WITH_BOS, SHIFTED = "aligned", "starts_with_bos", "shifted"
FORMS = (ALIGNED, STARTS_WITH_BOS, SHIFTED)
MAX_NAMED_KEYS = 100
OTHER_KEYS = "(other keys)"


@dataclass
class Counts:
    """All but `bad_rows`, `bad_reasons` and `blank_lines` concern only the rows that were written.

    Attributes:
        bad_reasons: bad rows by (field, reason).
        truncated_histories, truncated_targets: rows by whether the conversion truncated them.
        incomplete_histories: rows whose histories lack earlier items, truncated by the conversion or before it.
        masked_encoder, masked_decoder: positions dropped because their mask is 0.
        forms: rows by the form of the decoder's labels in the file, see `canonical.py`.
        largest_encoder_position, largest_decoder_position: as stored, -1 if there is no row.
        encoder_lengths, decoder_lengths, rejected_lengths: rows by number of tokens or items, as stored.
        ignored_keys: rows by unknown key.
        items: items as stored, and those that the catalogue lacks; empty without a catalogue.
        with_actions, with_times, with_target_times: rows that have these lists.
        largest_action: as stored, -1 if no row has actions.
        largest_time, smallest_time: seconds, of history and targets as stored; smallest > largest if there is none.
    """

    rows: int = 0
    bad_rows: int = 0
    blank_lines: int = 0
    truncated_histories: int = 0
    incomplete_histories: int = 0
    truncated_targets: int = 0
    masked_encoder: int = 0
    masked_decoder: int = 0
    all_labels_ignored: int = 0
    largest_encoder_position: int = -1
    largest_decoder_position: int = -1
    forms: Counter[str] = field(default_factory=Counter)
    encoder_lengths: Counter[int] = field(default_factory=Counter)
    decoder_lengths: Counter[int] = field(default_factory=Counter)
    rejected_lengths: Counter[int] = field(default_factory=Counter)
    ignored_keys: Counter[str] = field(default_factory=Counter)
    bad_reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    with_actions: int = 0
    with_times: int = 0
    with_target_times: int = 0
    largest_action: int = -1
    largest_time: int = -1
    smallest_time: int = LARGEST_TIME
    items: ItemCounts = field(default_factory=ItemCounts)

    def add(self, other: "Counts") -> None:
        for name, value in vars(other).items():
            if name.startswith("largest_"):
                setattr(self, name, max(getattr(self, name), value))
            elif name.startswith("smallest_"):
                setattr(self, name, min(getattr(self, name), value))
            elif name == "ignored_keys":
                self.add_ignored_keys(value)
            elif isinstance(value, ItemCounts):
                self.items.add(value)
            elif isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def add_ignored_keys(self, keys: Counter[str]) -> None:
        """Keeps only the first MAX_NAMED_KEYS names, so that data used as keys does not fill the memory."""
        for key, rows in keys.items():
            name = shown_name(key)
            known = name in self.ignored_keys or len(self.ignored_keys) < MAX_NAMED_KEYS
            self.ignored_keys[name if known else OTHER_KEYS] += rows

    def add_inputs(
        self, rows: int, actions: np.ndarray | None, times: np.ndarray | None, target_times: np.ndarray | None
    ) -> None:
        """Counts the actions and times of `rows` rows, concatenated and with unknown times as -1."""
        self.with_actions = 0 if actions is None else rows
        self.with_times = 0 if times is None else rows
        self.with_target_times = 0 if target_times is None else rows
        if actions is not None:
            self.largest_action = int(actions.max())
        for values in (times, target_times):
            if values is not None:
                self.largest_time = max(self.largest_time, int(values.max()))
                known = values[values != UNKNOWN_TIME]
                self.smallest_time = min(self.smallest_time, int(known.min(initial=LARGEST_TIME)))

    def form_counts(self) -> dict[str, int]:
        return {form: self.forms[form] for form in FORMS}
