"""The tables that a conversion prints."""

from collections.abc import Sequence

from ugt_composer.conversion.counts import SHIFTED, STARTS_WITH_BOS, Counts
from ugt_composer.conversion.known_items import KnownItems
from ugt_composer.conversion.settings import Settings
from ugt_composer.jsonl.schema import DECODER_TIMES, EARLIER, ENCODER_ACTIONS, ENCODER_TIMES, RECOMMEND

FORM_NOTES = {
    SHIFTED: "rows with other labels than their ids and no cls: cls put in front",
    STARTS_WITH_BOS: "rows that start with cls, labels kept as they are",
}
MOST_REASONS = 20


def summary(counts: Counts, settings: Settings, known: KnownItems | None = None) -> str:
    """What was converted and what was changed; lines with a count of zero are omitted."""
    lines = [
        ("rows written", counts.rows),
        ("bad rows", counts.bad_rows),
        ("blank lines skipped", counts.blank_lines),
        (f"histories cut to their last {settings.max_history} tokens (--max-history)", counts.truncated_histories),
        (
            f"histories that lack earlier items ({EARLIER} or --max-history)",
            counts.incomplete_histories * (counts.incomplete_histories > counts.truncated_histories),
        ),
        (f"targets cut to their first {settings.max_target} tokens (--max-target)", counts.truncated_targets),
        ("masked-out history positions dropped", counts.masked_encoder),
        ("masked-out target positions dropped", counts.masked_decoder),
        ("rows with nothing to predict: all labels are -100", counts.all_labels_ignored),
    ]
    if settings.kind == RECOMMEND:
        lines += [(note, counts.forms[form]) for form, note in FORM_NOTES.items()]
    lines += [(f"rows with the unknown key {key}, ignored", n) for key, n in counts.ignored_keys.items()]
    lines += [
        (f"rows with {key}", number)
        for key, number in (
            (ENCODER_ACTIONS, counts.with_actions),
            (ENCODER_TIMES, counts.with_times),
            (DECODER_TIMES, counts.with_target_times),
        )
    ]
    if known is not None:
        source = f"{known.catalogue.source}{' (found beside the input)' * known.found}"
        for kind, number in counts.items.items.items():
            outside = counts.items.outside[kind]
            lines.append((f"{kind}, {f'{outside:,} of them not' if outside else 'all'} in {source}", number))
    return table([(f"{number:,}", name) for name, number in lines if number or name == "rows written"])


def reasons(counts: Counts) -> str:
    """Bad rows by field and reason, the most frequent first."""
    ordered = sorted(counts.bad_reasons.items(), key=lambda entry: (-entry[1], entry[0]))
    lines = [(f"{rows:,}", field, reason) for (field, reason), rows in ordered[:MOST_REASONS]]
    if len(ordered) > MOST_REASONS:
        rest = sum(rows for _, rows in ordered[MOST_REASONS:])
        lines.append((f"{rest:,}", "", f"{len(ordered) - MOST_REASONS} other reasons"))
    return table([("rows", "field", "reason"), *lines])


def table(lines: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the first one right-aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for first, *rest in lines:
        cells = [first.rjust(widths[0]), *(cell.ljust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)
