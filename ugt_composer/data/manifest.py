"""The manifest of a folder of shards, checked against the model before training starts."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ugt_composer.config.schema import Config, StreamConfig
from ugt_composer.data.codec import VERSIONS
from ugt_composer.data.integrity import (
    ADVICE,
    INDEX_NAME,
    MANIFEST_NAME,
    ShardFacts,
    index_corruption,
    read_index,
    size_mismatch,
)
from ugt_composer.errors import UserError, where_searched
from ugt_composer.jsonl.schema import PREFERENCE, RECOMMEND

SIDES = ("encoder", "decoder", "rejected")
MOST_NAMED = 5  # folders that a message suggests


@dataclass(frozen=True)
class Manifest:
    """The facts about one folder that training depends on.

    Attributes:
        folder: where the shards are.
        kind: "recommend" or "preference".
        rows: rows in the folder.
        codebook_sizes: the sizes that the rows were checked against.
        largest_position: the largest position of any token.
        longest: the maximum numbers per row: tokens of the history, tokens of the target, rejected items.
        integer_width: bytes per integer in a row.
        index_hash: the hash of index.json, which in turn records the hash of every shard.
        reference: hash of the weights of the reference model whose log-probabilities the rows store; None if none.
        reference_precision, reference_strategy: the precision and strategy in whose arithmetic they were computed; None
            if none, or if they were written before these were recorded.
        history_lengths: rows by number of tokens of the history.
        incomplete_histories: rows whose history is known to lack earlier items.
        catalogue: the fingerprint of the catalogue that the rows' semantic IDs come from; None if not known.
        catalogue_file: the file that it was read from, as the conversion's user named it.
        items, outside: by kind, the items of the rows, and those that this catalogue lacks.
        rows_with: rows that have encoder_actions, encoder_times and decoder_times; empty if none has any.
        largest_action: of all rows, 0 if there is none.
        actions: the names of the actions 1, 2, …; empty if they have none.
        times: the first and the last time in seconds; None if no row has times.
    """

    folder: str
    kind: str
    rows: int
    codebook_sizes: tuple[int, ...]
    largest_position: int
    longest: tuple[int, int, int]
    integer_width: int
    index_hash: str
    reference: str | None
    reference_precision: str | None = None
    reference_strategy: str | None = None
    history_lengths: Mapping[int, int] = field(default_factory=dict)
    incomplete_histories: int = 0
    catalogue: str | None = None
    catalogue_file: str | None = None
    items: Mapping[str, int] = field(default_factory=dict)
    outside: Mapping[str, int] = field(default_factory=dict)
    rows_with: Mapping[str, int] = field(default_factory=dict)
    largest_action: int = 0
    actions: tuple[str, ...] = ()
    times: tuple[int, int] | None = None


def read_manifest(folder: str | Path, complete: bool = True) -> Manifest:
    """Reads the manifest of a folder; with `complete`, all its shards must be present.

    Raises:
        UserError: the folder was not made by the conversion, its index does not match the manifest, or shards are
            missing or truncated.
    """
    path = Path(folder) / MANIFEST_NAME
    if not Path(folder).is_dir():
        found = "is a file" if Path(folder).exists() else f"no such folder{where_searched(folder)}"
        raise UserError(f"{folder}: {found}; expected a folder of MDS shards made by ugt convert")
    try:
        facts = json.loads(path.read_text("utf-8"))
        if facts["codec_version"] not in VERSIONS:
            raise UserError(
                f"{path}: codec version {facts['codec_version']}, this package reads versions "
                f"{' and '.join(map(str, VERSIONS))}; convert the data again"
            )
        counts = facts["counts"]
        manifest = Manifest(
            folder=str(folder),
            kind=facts["kind"],
            rows=facts["counts"]["rows"],
            codebook_sizes=tuple(facts["codebook_sizes"]),
            largest_position=max(facts["largest_position"].values()),
            longest=tuple(max(map(int, facts["lengths"][side]), default=0) for side in SIDES),  # type: ignore[arg-type]
            integer_width=facts["integer_width"],
            index_hash=facts["index_hash"],
            reference=facts.get("reference"),
            reference_precision=facts.get("reference_precision"),
            reference_strategy=facts.get("reference_strategy"),
            history_lengths={int(tokens): rows for tokens, rows in facts["lengths"][SIDES[0]].items()},
            incomplete_histories=counts.get("incomplete_histories", counts["truncated_histories"]),
            **_catalogue(facts.get("catalogue")),
            **_inputs(facts),
        )
    except FileNotFoundError:
        expected = "expected a folder made by ugt convert"
        raise UserError(f"{path}: missing; {expected}{_hint_of_subfolders(Path(folder))}") from None
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not made by ugt convert ({error!r}); convert the data again") from None
    if complete or (Path(folder) / INDEX_NAME).exists():
        shards = _check_index(Path(folder), manifest)
        if complete:
            _check_sizes(Path(folder), shards)
    return manifest


def _hint_of_subfolders(folder: Path) -> str:
    """Suggests the folders of shards inside a folder that has no shards itself, such as the --out of an import."""
    inner = sorted(str(one.parent) for one in folder.glob(f"*/{MANIFEST_NAME}"))
    return f"; did you mean {', '.join(inner[:MOST_NAMED])}?" if inner else ""


def longest_history(manifests: Iterable[Manifest]) -> int:
    """Items of the longest history of the folders' rows, not counting the user's token; at least 1."""
    return max(1, max(manifest.longest[0] for manifest in manifests) - 1)


def rows_longer_than(max_history: int, manifests: Iterable[Manifest]) -> int:
    """Recommend rows of the folders whose histories have more items: tokens besides the user's."""
    lengths = [m.history_lengths for m in manifests if m.kind == RECOMMEND]
    return sum(rows for each in lengths for tokens, rows in each.items() if tokens > max_history + 1)


def _catalogue(facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields about the catalogue; none for a folder that was converted without one, or by an earlier version."""
    if facts is None:
        return {}
    return {
        "catalogue": facts["fingerprint"],
        "catalogue_file": facts["file"],
        "items": facts["items"],
        "outside": facts["outside"],
    }


def _inputs(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields about actions and times; none if no row has any."""
    inputs = facts.get("inputs")
    if inputs is None:
        return {}
    return {
        "rows_with": inputs["rows_with"],
        "largest_action": inputs["largest_action"],
        "actions": tuple(facts.get("actions", ())),
        "times": None if inputs["times"] is None else tuple(inputs["times"]),
    }


def _check_index(folder: Path, manifest: Manifest) -> list[ShardFacts]:
    index = folder / INDEX_NAME
    if (problem := index_corruption(index, manifest.index_hash)) is not None:
        raise UserError(f"{index}: {problem}; {ADVICE}")
    shards = read_index(folder)
    rows = sum(shard.rows for shard in shards)
    if rows != manifest.rows:
        raise UserError(f"{index}: {rows} rows, but {MANIFEST_NAME} records {manifest.rows}; {ADVICE}")
    return shards


def _check_sizes(folder: Path, shards: list[ShardFacts]) -> None:
    """Checks that every shard of the index exists and has the recorded size. Shards are verified when opened."""
    for shard in shards:
        if (problem := size_mismatch(folder / shard.stored.name, shard.stored)) is not None:
            raise UserError(f"{folder / shard.stored.name}: {problem}; {ADVICE}")


def streams_of(key: str, data) -> list[StreamConfig]:
    """The streams of `data.train` or `data.eval`: its list, or its one folder. UserError if neither is set."""
    if data.streams:
        return list(data.streams)
    if not data.local:
        raise UserError(f"{key}.local is missing; expected a folder of MDS shards made by ugt convert")
    return [StreamConfig(local=data.local, remote=data.remote)]


def check_data(config: Config, key: str, streams: Sequence[StreamConfig]) -> list[Manifest]:
    """Reads the manifests of the streams and checks each against the model's sizes.

    A remote stream is skipped if its manifest has not been downloaded, which happens in a dry run only.

    Raises UserError naming the folder, the key and both values.
    """
    readable = [s for s in streams if s.remote is None or (Path(str(s.local)) / MANIFEST_NAME).exists()]
    manifests = [read_manifest(str(stream.local), complete=stream.remote is None) for stream in readable]
    for manifest in manifests:
        if any(data > model for data, model in zip(manifest.codebook_sizes, config.model.codebook_sizes, strict=True)):
            raise UserError(
                f"{manifest.folder} ({key}) was converted with --codebook-sizes "
                f"{' '.join(map(str, manifest.codebook_sizes))}, but model.codebook_sizes is "
                f"{list(config.model.codebook_sizes)}; expected at least those sizes"
            )
        if manifest.largest_position >= config.model.max_seq_len:
            raise UserError(
                f"{manifest.folder} ({key}) has a token at position {manifest.largest_position}, but model.max_seq_len "
                f"is {config.model.max_seq_len}; expected more, or a conversion with a smaller --max-history"
            )
        _check_actions(config, key, manifest)
        if manifest.integer_width != manifests[0].integer_width:
            raise UserError(
                f"{manifest.folder} ({key}) stores integers of {manifest.integer_width} bytes, {manifests[0].folder} "
                f"of {manifests[0].integer_width}; convert both with the same --codebook-sizes"
            )
    return manifests


def _check_actions(config: Config, key: str, manifest: Manifest) -> None:
    """UserError if rows have actions that a model which reads them has no embedding for."""
    largest, num_actions = max(manifest.largest_action, len(manifest.actions)), config.model.num_actions
    if 0 < num_actions < largest:
        what = f"names {len(manifest.actions)} actions" if manifest.actions else f"has the action {largest}"
        raise UserError(
            f"{manifest.folder} ({key}) {what}, but model.num_actions is {num_actions}; expected at least {largest}, "
            "or 0 for a model that reads no actions"
        )


def check_kinds(config: Config, manifests: list[Manifest]) -> None:
    """UserError where preference rows would be trained on without a preference loss."""
    for manifest in manifests:
        if manifest.kind == PREFERENCE and config.loss.lambda_preference == 0:
            raise UserError(
                f"{manifest.folder} holds preference rows, but loss.lambda_preference is 0; expected recommend rows "
                "or stage 3"
            )


def about_pairs(config: Config, manifests: Sequence[Manifest]) -> str | None:
    """A warning if a loss of chosen and rejected items has none to train on.

    Args:
        manifests: of data.train; a dry run lacks those that have not been downloaded, and then it is not known.
    """
    loss = config.loss
    if (
        loss.lambda_preference == 0
        or loss.uses_group
        or len(manifests) < len(streams_of("data.train", config.data.train))
    ):
        return None
    if any(manifest.kind == PREFERENCE for manifest in manifests):
        return None
    return (
        f"loss.lambda_preference is {loss.lambda_preference:g}, but no folder of data.train has preference rows, so "
        "the preference loss trains nothing; name such a folder, as the preferences.yaml of `ugt import` does, or set "
        "loss.preference_objective=group, which needs no pairs"
    )
