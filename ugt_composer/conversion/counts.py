"""The counts of a conversion. Partitions count separately; their counts are added in input order."""

from collections import Counter
from dataclasses import dataclass, field

from ugt_composer.catalogue.outside import ItemCounts
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
    items: ItemCounts = field(default_factory=ItemCounts)

    def add(self, other: "Counts") -> None:
        for name, value in vars(other).items():
            if name.startswith("largest_"):
                setattr(self, name, max(getattr(self, name), value))
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

    def form_counts(self) -> dict[str, int]:
        return {form: self.forms[form] for form in FORMS}
