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
from ugt_composer.catalogue.outside import outside_items
from ugt_composer.conversion.counts import Counts
from ugt_composer.conversion.known_items import KnownItems
from ugt_composer.conversion.manifest import InputFacts, write_manifest
from ugt_composer.conversion.output import output_folder
from ugt_composer.conversion.settings import Settings
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
    rows, known = _Rows(manifests), KnownItems(catalogue, found=False)
    first = Path(manifests[0].folder)
    shard = json.loads((first / INDEX_NAME).read_text("utf-8"))["shards"][0]
    written, counts = Written(), Counts()
    with output_folder(out, overwrite) as output, _new_file(jsonl) as lines:
        writer = ShardWriter(output.work, shard["compression"], shard["hashes"], shard["size_limit"])
        for begin in range(0, len(numbers), batch_size):
            batch = [rows[number] for number in numbers[begin : begin + batch_size]]
            made = _preference_rows(batch, recommender, known.ids, selection, widths, written)
            for row in made:
                writer.add_row(encode_row(row, manifests[0].integer_width))
                if lines is not None:
                    lines.write(json.dumps(json_row(row), ensure_ascii=False) + "\n")
            _count(made, known.ids, counts)
            progress(len(batch))
        if not written.rows:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in written.left_out.items())
            raise UserError(f"no preference row can be made: of {written.read:,} rows {reasons}; nothing was written")
        writer.close()
        write_index(output.work, writer.shards)
        write_manifest(output.work, _settings(manifests), counts, InputFacts([]), known, _actions(manifests))
        _add_to_manifest(output.work / MANIFEST_NAME, manifests, selection, model, written)
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


def _count(rows: Sequence[Row], known: SemanticIdSet, counts: Counts) -> None:
    for row in rows:
        new = Counts(rows=1, largest_decoder_position=0)
        new.largest_encoder_position = int(row.encoder[:, POSITION].max(initial=-1))
        new.encoder_lengths[len(row.encoder)] += 1
        new.decoder_lengths[len(row.decoder)] += 1
        new.rejected_lengths[len(row.rejected)] += 1
        new.add_inputs(1, row.encoder_actions, row.encoder_times, row.decoder_times)
        counts.add(new)
    if rows:
        counts.items.add(outside_items(batch_of(rows), known)[0])


def _settings(manifests: Sequence[Manifest]) -> Settings:
    """The settings of a conversion whose rows fit the limits of all folders."""
    sources = [_facts_of(manifest) for manifest in manifests]
    l1, l2, l3 = np.max([source["codebook_sizes"] for source in sources], axis=0).tolist()
    limits = {name: max(source[name] for source in sources) for name in ("max_history", "max_target", "max_positions")}
    return Settings(PREFERENCE, (l1, l2, l3), **limits)


def _actions(manifests: Sequence[Manifest]) -> Sequence[str] | None:
    return next((manifest.actions for manifest in manifests if manifest.actions), None)


def _facts_of(manifest: Manifest) -> dict[str, Any]:
    return json.loads((Path(manifest.folder) / MANIFEST_NAME).read_text("utf-8"))


def _add_to_manifest(
    path: Path, manifests: Sequence[Manifest], selection: Selection, model: str, written: Written
) -> None:
    """What the rows were made of, and how."""
    identity = json.dumps([manifest.index_hash for manifest in manifests]).encode()
    rewards = selection.rewards
    manifest = json.loads(path.read_text("utf-8"))
    manifest["counts"]["incomplete_histories"] = min(sum(m.incomplete_histories for m in manifests), written.rows)
    manifest["input"] = {
        "files": len(manifests),
        "lines": written.read,
        "fingerprint": f"xxh3_128:{xxhash.xxh3_128_hexdigest(identity)}",
    }
    manifest["made_by"] = {
        "model": model,
        "rejected": selection.rejected,
        "left_out": {reason: count for reason, count in written.left_out.items() if count},
        "not_proven_exact": written.not_proven,
        **({} if rewards is None else {"reward": rewards.name, "candidates": selection.candidates}),
        **({} if selection.reward_scale is None else {"reward_scale": selection.reward_scale}),
    }
    path.write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
