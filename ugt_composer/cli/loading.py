"""Loads a trained model and its catalogue for the commands."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.shard_items import check_shards
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.checkpoint.portable import FINGERPRINT, check_fingerprint, load_portable
from ugt_composer.checkpoint.remote import model_folder
from ugt_composer.config.schema import Config, StreamConfig
from ugt_composer.data.manifest import Manifest, check_data
from ugt_composer.data.model_inputs import actions_of_model, common_action_names, missing_inputs, named_actions
from ugt_composer.errors import UserError
from ugt_composer.generation.beam_search import search_bytes
from ugt_composer.job.exit import own_rank
from ugt_composer.jsonl.schema import RECOMMEND
from ugt_composer.model.ugt import UGT

MOST_SEARCH_BYTES = 4 * 2**30  # for one user


def load_trained(checkpoint: str, catalogue: str | None) -> tuple[UGT, Config, dict[str, str], Catalogue | None]:
    """A portable model, its config, facts and catalogue, or the one given. Raises UserError if these do not match."""
    folder = model_folder(checkpoint)
    model, config, facts = load_portable(folder)
    return model, config, facts, load_catalogue_of(checkpoint, folder, config, facts, catalogue)


def load_catalogue_of(
    checkpoint: str, folder: Path, config: Config, facts: dict[str, str], given: str | None
) -> Catalogue | None:
    """A loaded model's catalogue, or the one given, which may have more items; None if there is none.

    Args:
        checkpoint: as the user named it.
        folder: of the model, on this machine.

    Raises:
        UserError: the catalogue does not match the model.
    """
    path = given or config.data.catalogue
    if path is None:
        return None
    if not Path(path).exists():
        raise UserError(f"{path}: no such catalogue; give the one that the model was trained with by --catalogue FILE")
    items = Catalogue.load(path)
    items.check(config.model.codebook_sizes)
    note = check_fingerprint(checkpoint, folder, facts, {FINGERPRINT: items.fingerprint}, items)
    if note is not None:
        say(f"warning: {note}")
    return items


def say(sentence: str) -> None:
    """Prints to standard error, once for all ranks."""
    if own_rank() == 0:
        print(sentence, file=sys.stderr)


def check_data_of(checkpoint: str, facts: dict[str, str], manifests: Sequence[Manifest]) -> None:
    """For a model without a catalogue. Raises UserError if folders were converted with another one than its data."""
    for manifest in manifests:
        if manifest.catalogue is not None:
            of_shards = {FINGERPRINT: manifest.catalogue}
            check_fingerprint(checkpoint, Path(checkpoint), facts, of_shards, None, f"that of {manifest.folder}")


def check_actions_of(checkpoint: str, config: Config, facts: dict[str, str], manifests: Sequence[Manifest]) -> None:
    """Raises UserError if folders name the actions that the model reads otherwise than its data did."""
    if config.model.num_actions:
        common_action_names([(checkpoint, actions_of_model(facts)), *named_actions(manifests)])


def recommend_rows(
    option: str,
    folders: Sequence[str],
    checkpoint: str,
    config: Config,
    facts: dict[str, str],
    catalogue: Catalogue | None,
) -> list[Manifest]:
    """The manifests of an option's folders. UserError unless they hold recommend rows that fit model and catalogue."""
    manifests = check_data(config, option, [StreamConfig(local=folder) for folder in folders])
    for manifest in manifests:
        if manifest.kind != RECOMMEND:
            raise UserError(
                f"{option} {manifest.folder} holds {manifest.kind} rows; expected rows of --kind {RECOMMEND}"
            )
    check_actions_of(checkpoint, config, facts, manifests)
    warnings = check_shards({option: manifests}, catalogue, config.data.max_fraction_outside_catalogue)
    for warning in [*warnings, *missing_inputs(config.model, option, manifests)]:
        say(f"warning: {warning}")
    if catalogue is None:
        check_data_of(checkpoint, facts, manifests)
    return manifests


def with_item_scores(config: Config, catalogue: Catalogue | None, arguments: argparse.Namespace) -> Config:
    """The config with what the options of `add_item_scores` set. Raises UserError for an invalid value."""
    names = ("item_score_weight", "item_neighbours", "neighbour_weight")
    given = {name: vars(arguments)[name] for name in names if vars(arguments)[name] is not None}
    if not given:
        return config
    data = replace(config.data, catalogue=None if catalogue is None else catalogue.source)
    try:
        return replace(config, data=data, evaluation=replace(config.evaluation, **given))
    except ValueError as error:
        options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items())
        raise UserError(f"{options}: {error}") from None


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """Raises UserError for an option below 1; options that were not given are accepted."""
    for name in names:
        value = vars(arguments)[name]
        for number in value if isinstance(value, list) else [value]:
            if number is not None and number < 1:
                option = f"--{name.replace('_', '-')}" if len(name) > 1 else f"-{name}"
                raise UserError(f"{option} is {number}; expected at least 1")


def check_search(trie: ItemTrie | None, codebook_sizes: tuple[int, ...], k: int, beam_width: int) -> None:
    """Raises UserError if so many recommendations or prefixes would take too much memory for a single user."""
    needed = search_bytes(trie, codebook_sizes, k, beam_width)
    if needed > MOST_SEARCH_BYTES:
        raise UserError(
            f"-k {k:,} with --beam-width {beam_width:,} takes about {needed / 2**30:,.0f} GiB per user; expected at "
            f"most {MOST_SEARCH_BYTES >> 30}: lower them" + ("" if trie is not None else ", or give a --catalogue")
        )
