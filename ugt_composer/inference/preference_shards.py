"""Writes the preference rows that a model makes of recommend rows, as shards like those of the conversion."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.id_set import SemanticIdSet
from ugt_composer.catalogue.outside import ItemCounts, outside_items
from ugt_composer.conversion.output import output_folder
from ugt_composer.conversion.shards import ShardWriter, write_index
from ugt_composer.data.codec import POSITION, Row, decode_row, encode_row
from ugt_composer.data.evaluation_dataset import RowFolder
from ugt_composer.data.integrity import INDEX_NAME, MANIFEST_NAME
from ugt_composer.data.manifest import Manifest
from ugt_composer.data.row_batch import batch_of
from ugt_composer.errors import UserError
from ugt_composer.inference.exact_lists import exact_lists
from ugt_composer.inference.own_preferences import Selection, json_row, targets_of
from ugt_composer.inference.recommender import Recommender
from ugt_composer.jsonl.schema import PREFERENCE
from ugt_composer.storage.hashed_file import file_hash
from ugt_composer.vocabulary import NUM_SPECIAL_IDS

NO_TARGET = "have no target"
OUTSIDE = "have a target that the catalogue lacks"
NOTHING_REJECTED = "have no item that can be rejected"


@dataclass
class Written:
    """
    Attributes:
        read, rows: recommend rows that were read, and preference rows that were written.
        left_out: of the others, by reason.
        rejected: rejected items in all rows.
        not_proven: rows whose list of items is not proven to be exact, see `exact_lists`.
    """

    read: int = 0
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    not_proven: int = 0


@dataclass
class _Facts:
    """What the manifest records of the written rows."""

    lengths: dict[str, Counter[int]] = field(
        default_factory=lambda: {side: Counter() for side in ("encoder", "decoder", "rejected")}
    )
    largest_position: int = -1
    items: ItemCounts = field(default_factory=ItemCounts)

    def add(self, rows: Sequence[Row], known: SemanticIdSet) -> None:
        for row in rows:
            for side, values in (("encoder", row.encoder), ("decoder", row.decoder), ("rejected", row.rejected)):
                self.lengths[side][len(values)] += 1
            self.largest_position = max(self.largest_position, int(row.encoder[:, POSITION].max(initial=-1)))
        if rows:
            self.items.add(outside_items(batch_of(rows), known)[0])


def write_preferences(
    recommender: Recommender,
    catalogue: Catalogue,
    manifests: Sequence[Manifest],
    out: Path,
    selection: Selection,
    widths: Sequence[int],
    *,
    model: str,
    numbers: Sequence[int],
    batch_size: int,
    overwrite: bool,
    jsonl: Path | None = None,
    progress: Callable[[int], Any] = lambda rows: None,
) -> Written:
    """Writes the preference rows of a model, in the order of the recommend rows that they are made of. The same model,
    rows and options give the same bytes. `out` and `jsonl` appear only when they are complete.

    Args:
        manifests: of the folders of recommend rows.
        widths: of the beams, see `beam_widths`.
        model: hash of the model's weights, for the manifest.
        numbers: which rows of the folders, counted over all of them, ascending.
        jsonl: also writes the rows as JSON Lines.
        progress: called after each batch with its number of rows.

    Raises:
        UserError: `out` exists and `overwrite` is not set, a shard is corrupted, or no row could be made.
    """
    rows, known = _Rows(manifests), SemanticIdSet(catalogue.triples)
    first = Path(manifests[0].folder)
    shard = json.loads((first / INDEX_NAME).read_text("utf-8"))["shards"][0]
    written, facts = Written(), _Facts()
    with output_folder(out, overwrite) as output, _new_file(jsonl) as lines:
        writer = ShardWriter(output.work, shard["compression"], shard["hashes"], shard["size_limit"])
        for begin in range(0, len(numbers), batch_size):
            batch = [rows[number] for number in numbers[begin : begin + batch_size]]
            made = _preference_rows(batch, recommender, known, selection, widths, written)
            for row in made:
                writer.add_row(encode_row(row, manifests[0].integer_width))
                if lines is not None:
                    lines.write(json.dumps(json_row(row), ensure_ascii=False) + "\n")
            facts.add(made, known)
            progress(len(batch))
        if not written.rows:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in written.left_out.items())
            raise UserError(f"no preference row can be made: of {written.read:,} rows {reasons}; nothing was written")
        writer.close()
        write_index(output.work, writer.shards)
        _write_manifest(output.work, manifests, catalogue, selection, model, written, facts)
        output.publish()
    return written


def _preference_rows(
    rows: Sequence[Row],
    recommender: Recommender,
    known: SemanticIdSet,
    selection: Selection,
    widths: Sequence[int],
    written: Written,
) -> list[Row]:
    """The preference rows of a batch. Adds to `written`."""
    targets = [targets_of(row) for row in rows]
    first = np.array([of_row[0] for of_row in targets])
    has_target = (first >= NUM_SPECIAL_IDS).all(axis=1)
    is_known = known.contains(np.maximum(first, 0)) & has_target
    written.read += len(rows)
    written.left_out[NO_TARGET] += int((~has_target).sum())
    written.left_out[OUTSIDE] += int((has_target & ~is_known).sum())
    usable = np.flatnonzero(is_known).tolist()
    if not usable:
        return []
    assert recommender.trie is not None
    size = min(selection.list_size, len(recommender.trie))
    chosen_from = [rows[at] for at in usable], [targets[at] for at in usable]
    lists, not_proven = exact_lists(recommender, *chosen_from, size, widths)
    made = [selection.of(row, of_row[0], items) for row, of_row, items in zip(*chosen_from, lists, strict=True)]
    kept = [row for row in made if row is not None]
    written.left_out[NOTHING_REJECTED] += len(made) - len(kept)
    written.rows += len(kept)
    written.rejected += sum(len(row.rejected) for row in kept)
    written.not_proven += not_proven
    return kept


class _Rows:
    """The rows of several folders, by their number over all of them."""

    def __init__(self, manifests: Sequence[Manifest]):
        self.folders = [RowFolder(manifest.folder, None) for manifest in manifests]
        self.ends = np.cumsum([len(folder) for folder in self.folders])

    def __getitem__(self, number: int) -> Row:
        at = int(np.searchsorted(self.ends, number, side="right"))
        folder = self.folders[at]
        return decode_row(folder[number - int(self.ends[at]) + len(folder)])


@contextmanager
def _new_file(path: Path | None) -> Iterator[IO[str] | None]:
    """A file that takes its name when the block ends without an error; None for None."""
    if path is None:
        yield None
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_manifest(
    folder: Path,
    manifests: Sequence[Manifest],
    catalogue: Catalogue,
    selection: Selection,
    model: str,
    written: Written,
    facts: _Facts,
) -> None:
    """That of the recommend rows, with what differs for the preference rows."""
    sources = [json.loads((Path(manifest.folder) / MANIFEST_NAME).read_text("utf-8")) for manifest in manifests]
    incomplete = sum(manifest.incomplete_histories for manifest in manifests)
    identity = json.dumps([manifest.index_hash for manifest in manifests]).encode()
    rewards = selection.rewards
    manifest = sources[0] | {
        "codec_version": max(source["codec_version"] for source in sources),
        "kind": PREFERENCE,
        "codebook_sizes": np.max([source["codebook_sizes"] for source in sources], axis=0).tolist(),
        "max_positions": max(source["max_positions"] for source in sources),
        "counts": {
            "rows": written.rows,
            "bad_rows": 0,
            "truncated_histories": 0,
            "incomplete_histories": min(incomplete, written.rows),
        },
        "lengths": {
            side: {str(length): rows for length, rows in sorted(counts.items())}
            for side, counts in facts.lengths.items()
        },
        "largest_position": {"encoder": facts.largest_position, "decoder": 0},
        "input": {
            "files": len(manifests),
            "lines": written.read,
            "fingerprint": f"xxh3_128:{xxhash.xxh3_128_hexdigest(identity)}",
        },
        "catalogue": {
            "file": catalogue.source,
            "fingerprint": catalogue.fingerprint,
            "items": dict(facts.items.items),
            "outside": dict(facts.items.outside),
        },
        "made_by": {
            "model": model,
            "rejected": selection.rejected,
            "left_out": {reason: count for reason, count in written.left_out.items() if count},
            "not_proven_exact": written.not_proven,
            **({} if rewards is None else {"reward": rewards.name, "candidates": selection.candidates}),
            **({} if selection.reward_scale is None else {"reward_scale": selection.reward_scale}),
        },
        "warnings": [],
        "index_hash": f"xxh3_128:{file_hash('xxh3_128', folder / INDEX_NAME)}",
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
