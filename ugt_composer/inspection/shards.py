"""Facts about folders of MDS shards and about catalogues."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.compression import decompress

from ugt_composer.catalogue.catalogue import Catalogue, Item
from ugt_composer.catalogue.shard_items import check_shards
from ugt_composer.data.codec import HEADER, HEADER_FIELDS, IDS, LABELS, TOKEN_TYPE, UNKNOWN_TIME, decode_row
from ugt_composer.data.history import SemanticId
from ugt_composer.data.integrity import ADVICE, ShardFacts, corruption, read_index
from ugt_composer.data.manifest import Manifest, read_manifest
from ugt_composer.data.shard_rows import ShardRows
from ugt_composer.errors import UserError
from ugt_composer.jsonl.schema import ITEM_KEYS
from ugt_composer.vocabulary import IGNORE_INDEX, ITEM

LENGTHS = {"history tokens": "encoder", "target tokens": "decoder", "rejected items": "rejected"}


def shard_facts(folder: Path, rows: int, catalogue: Catalogue | None) -> dict[str, Any]:
    """Reads every shard. Writes nothing: compressed shards are decompressed in memory.

    Raises:
        UserError: the folder is not a complete output of the conversion, or a shard is corrupted.
    """
    manifest = read_manifest(folder)
    warnings = check_shards({"ugt inspect": [manifest]}, catalogue, max_fraction=1)
    shards = read_index(folder)
    headers: list[np.ndarray] = []
    first_rows: list[bytes] = []
    for shard in shards:
        shard_headers, samples = _read_shard(folder, shard, rows - len(first_rows))
        headers.append(shard_headers)
        first_rows += samples
    all_headers = np.concatenate(headers) if headers else np.empty(0, HEADER_FIELDS)
    return {
        "rows of kind": manifest.kind,
        "rows": manifest.rows,
        "shards": len(shards),
        "bytes": sum(shard.stored.size for shard in shards),
        "compression": shards[0].compression if shards else None,
        "hashes": sorted({name for shard in shards for name in shard.stored.hashes}),
        "codebooks": list(manifest.codebook_sizes),
        "largest position": manifest.largest_position,
        "integers": f"{manifest.integer_width} bytes",
        "index": manifest.index_hash,
        **({"log-probabilities of": manifest.reference} if manifest.reference else {}),
        **({"computed in": manifest.reference_precision} if manifest.reference_precision else {}),
        **_catalogue_facts(manifest),
        **_input_facts(manifest),
        **({"warning": warnings[0]} if warnings else {}),
        "lengths": [{"of": name, **_length_statistics(all_headers[column])} for name, column in LENGTHS.items()],
        "first rows": [_row_facts(sample, catalogue, manifest.actions) for sample in first_rows],
    }


def _catalogue_facts(manifest: Manifest) -> dict[str, Any]:
    if manifest.catalogue_file is None:
        return {}
    lacks = {f"{kind} that it lacks": number for kind, number in manifest.outside.items() if number}
    return {"catalogue": manifest.catalogue_file, "catalogue's fingerprint": manifest.catalogue, **lacks}


def _input_facts(manifest: Manifest) -> dict[str, Any]:
    """Of rows with actions or times."""
    with_lists = {f"rows with {key}": number for key, number in manifest.rows_with.items() if number}
    times = [_date(time) for time in manifest.times or ()]
    if manifest.largest_action:
        with_lists["largest action"] = manifest.largest_action
    return {
        **with_lists,
        **({"actions": list(manifest.actions)} if manifest.actions else {}),
        **({"first and last time": times} if times else {}),
    }


def _date(seconds: int) -> str | None:
    """A Unix time in UTC; None for an unknown one."""
    return None if seconds == UNKNOWN_TIME else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _read_shard(folder: Path, shard: ShardFacts, rows: int) -> tuple[np.ndarray, list[bytes]]:
    """The header of every row, and the first `rows` rows as encoded bytes."""
    path = folder / shard.stored.name
    if (problem := corruption(path, shard.stored)) is not None:
        raise UserError(f"{path}: {problem}; {ADVICE}")
    try:
        data = None if shard.zipped is None else decompress(shard.compression, path.read_bytes())
        samples = ShardRows(path, data).rows(np.arange(shard.rows))
        headers = np.frombuffer(b"".join(sample[: HEADER.size] for sample in samples), HEADER_FIELDS)
    except Exception as error:  # without hashes, corruption may cause any error
        raise UserError(f"{path}: cannot be read as a shard of rows ({error}); {ADVICE}") from None
    return headers, samples[:rows]


def _length_statistics(lengths: np.ndarray) -> dict[str, Any]:
    if not len(lengths):
        return {}
    low, median, high, most = np.percentile(lengths, (0, 50, 95, 100))
    return {
        "least": int(low),
        "median": float(median),
        "mean": float(lengths.mean()),
        "95%": float(high),
        "most": int(most),
    }


def _row_facts(sample: bytes, catalogue: Catalogue | None, actions: Sequence[str]) -> dict[str, Any]:
    try:
        row = decode_row(sample)
    except ValueError as error:
        raise UserError(f"a row cannot be read: {error}; {ADVICE}") from None
    labels = row.decoder[:, LABELS]
    lists: dict[str, Any] = {}
    facts = {
        "user": row.user_id,
        "history": row.encoder[row.encoder[:, TOKEN_TYPE] == ITEM, IDS],
        "targets": labels[(labels != IGNORE_INDEX).all(1)],
    }
    if len(row.rejected):
        facts["rejected"] = row.rejected
    is_item = row.encoder[:, TOKEN_TYPE] == ITEM
    if row.encoder_actions is not None:
        names = dict(enumerate(actions, start=1))
        lists["actions"] = [names.get(action, action) for action in row.encoder_actions[is_item].tolist()]
    if row.encoder_times is not None:
        lists["times"] = [_date(time) for time in row.encoder_times[is_item].tolist()]
    if row.decoder_times is not None:
        lists["target times"] = [_date(time) for time in row.decoder_times.tolist()]
    triples = {key: value for key, value in facts.items() if isinstance(value, np.ndarray)}
    return (
        facts | {key: [_name(triple, catalogue) for triple in value.tolist()] for key, value in triples.items()} | lists
    )


def _name(triple: SemanticId, catalogue: Catalogue | None) -> str:
    """The ids of the items with this semantic id, or the semantic id if the catalogue has no such item."""
    items = [] if catalogue is None else catalogue.items_of(triple)
    return " = ".join(item.item_id for item in items) or "/".join(map(str, triple))


def catalogue_facts(catalogue: Catalogue, rows: int) -> dict[str, Any]:
    collisions = catalogue.collisions
    return {
        "items": len(catalogue),
        "with a name": int(catalogue.columns.has_name.sum()),
        "semantic ids": len(catalogue) - collisions.items + collisions.count,
        "shared semantic ids": collisions.count,
        "items that share one": collisions.items,
        "most items of one": collisions.largest,
        **({"retired": catalogue.retired} if catalogue.retired else {}),
        "fingerprint": catalogue.fingerprint,
        "levels": [
            {"level": key, "used ids": len(np.unique(column)), "largest id": int(column.max())}
            for key, column in zip(ITEM_KEYS, catalogue.triples.T, strict=True)
        ],
        "first rows": [_item_facts(item, catalogue.retired > 0) for item in catalogue.items[:rows]],
    }


def _item_facts(item: Item, with_retired: bool) -> dict[str, Any]:
    retired = {"retired": "yes" if item.retired else ""} if with_retired else {}
    return {"item_id": item.item_id, "semantic ID": _name(item.triple, None), "name": item.name or "", **retired}
