"""manifest.json: what a folder of shards holds and what it was made from. The same input and options give
the same bytes. A copy of the catalogue is written beside it."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from ugt_composer.catalogue.extension import catalogue_copy
from ugt_composer.catalogue.outside import ItemCounts
from ugt_composer.conversion.counts import Counts
from ugt_composer.conversion.known_items import KnownItems
from ugt_composer.conversion.settings import Settings
from ugt_composer.data.codec import VERSIONS
from ugt_composer.data.integrity import CATALOGUE_COPY, INDEX_NAME, MANIFEST_NAME
from ugt_composer.jsonl.schema import DECODER_TIMES, ENCODER_ACTIONS, ENCODER_TIMES, RECOMMEND
from ugt_composer.jsonl.sources import Source
from ugt_composer.storage.hashed_file import file_hash

SCHEMA_VERSION = 1


@dataclass
class InputFacts:
    """What was read of the sources: for each, the number of lines so far and the hashes of its pieces."""

    sources: Sequence[Source]
    lines: dict[int, int] = field(default_factory=Counter)
    digests: dict[int, list[str]] = field(default_factory=dict)

    def add(self, source: int, lines: int, digest: str) -> None:
        self.lines[source] += lines
        self.digests.setdefault(source, []).append(digest)

    def fingerprint(self) -> str:
        """A hash of the files' (decompressed) bytes and base names in order; independent of folders and dates."""
        facts = [[os.path.basename(source.path), self.digests.get(at, [])] for at, source in enumerate(self.sources)]
        return f"xxh3_128:{xxhash.xxh3_128(json.dumps(facts).encode()).hexdigest()}"


def write_manifest(
    folder: Path,
    settings: Settings,
    counts: Counts,
    inputs: InputFacts,
    known: KnownItems | None = None,
    actions: Sequence[str] | None = None,
    warnings: Sequence[str] = (),
) -> None:
    """Args:
    actions: the names of the rows' actions; None if they have no actions, or no names.
    """
    manifest: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "codec_version": VERSIONS[bool(input_facts(counts))],
        "integer_width": settings.width,
        "kind": settings.kind,
        "codebook_sizes": list(settings.codebook_sizes),
        "max_history": settings.max_history,
        "max_target": settings.max_target,
        "max_positions": settings.max_positions,
        "counts": _counts(settings, counts),
        "lengths": {
            "encoder": _histogram(counts.encoder_lengths),
            "decoder": _histogram(counts.decoder_lengths),
            "rejected": _histogram(counts.rejected_lengths),
        },
        "largest_position": {"encoder": counts.largest_encoder_position, "decoder": counts.largest_decoder_position},
        **input_facts(counts),
        **({} if actions is None else {"actions": list(actions)}),
        "input": {
            "files": len(inputs.sources),
            "lines": sum(inputs.lines.values()),
            "fingerprint": inputs.fingerprint(),
        },
        **({} if known is None else {"catalogue": _catalogue(folder, known, counts.items)}),
        "warnings": list(warnings),
        "index_hash": f"xxh3_128:{file_hash('xxh3_128', folder / INDEX_NAME)}",
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def _counts(settings: Settings, counts: Counts) -> dict[str, Any]:
    forms = {"decoder_forms": counts.form_counts()} if settings.kind == RECOMMEND else {}
    return {
        "rows": counts.rows,
        "bad_rows": counts.bad_rows,
        "blank_lines": counts.blank_lines,
        "truncated_histories": counts.truncated_histories,
        "incomplete_histories": counts.incomplete_histories,
        "truncated_targets": counts.truncated_targets,
        "masked_encoder_positions": counts.masked_encoder,
        "masked_decoder_positions": counts.masked_decoder,
        "all_labels_ignored": counts.all_labels_ignored,
        **forms,
        "ignored_keys": dict(sorted(counts.ignored_keys.items())),
        "bad_reasons": {f"{field}: {reason}": rows for (field, reason), rows in sorted(counts.bad_reasons.items())},
    }


def input_facts(counts: Counts) -> dict[str, Any]:
    """The entry about actions and times, if there are any."""
    rows = {ENCODER_ACTIONS: counts.with_actions, ENCODER_TIMES: counts.with_times}
    rows[DECODER_TIMES] = counts.with_target_times
    if not any(rows.values()):
        return {}
    times = [counts.smallest_time, counts.largest_time] if counts.smallest_time <= counts.largest_time else None
    return {"inputs": {"rows_with": rows, "largest_action": max(counts.largest_action, 0), "times": times}}


def _catalogue(folder: Path, known: KnownItems, counts: ItemCounts) -> dict[str, Any]:
    fingerprint = known.fingerprint(counts)
    if fingerprint is not None:
        (folder / CATALOGUE_COPY).write_bytes(catalogue_copy(known.catalogue))
    return {
        "file": known.catalogue.source,
        "fingerprint": fingerprint,
        **({} if fingerprint is None else {"copy": CATALOGUE_COPY}),
        "items": dict(counts.items),
        "outside": dict(counts.outside),
    }


def _histogram(lengths: Counter[int]) -> dict[str, int]:
    return {str(length): rows for length, rows in sorted(lengths.items())}
