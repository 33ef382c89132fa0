"""Portable models, to be loaded by the next stage, the CLI and other programs: `model.safetensors`, `config.yaml`,
and a copy of the catalogue."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.extension import find_catalogue, not_contained
from ugt_composer.checkpoint.save_folder import CONFIG, WEIGHTS
from ugt_composer.checkpoint.written import or_removed, unlike_written, write_hashed
from ugt_composer.config.keys import DEFINES_WEIGHTS, FIXED, ON_RESUME
from ugt_composer.config.load import config_yaml, load_config
from ugt_composer.config.schema import Config, ModelConfig
from ugt_composer.data.integrity import CATALOGUE_COPY
from ugt_composer.data.manifest import Manifest
from ugt_composer.errors import UserError, where_searched
from ugt_composer.model.build import build_model
from ugt_composer.model.ugt import OPTIONAL_WEIGHTS, UGT, is_added_by
from ugt_composer.storage.hashed_file import file_hash
from ugt_composer.storage.record import (
    RECORD,
    CorruptedRecordError,
    Facts,
    facts_of,
    first_corruption,
    put_in_place,
    read_record,
)
from ugt_composer.storage.sync import forget_cached, sync_file

FINGERPRINT = "catalogue_fingerprint"
LONGEST_HISTORY = "longest_history"  # items of the longest history that the model was trained on
EXTENDED_FROM = "extended_from"  # the fingerprint before `ugt extend`
DATA_FINGERPRINT = "data_fingerprint"  # of a run without data.catalogue: the one that its shards record

UNKNOWN_ITEMS = "its items are not known, so they cannot be compared"


def save_portable(
    folder: str | Path,
    weights: dict[str, Tensor],
    config: Config,
    facts: dict[str, str],
    catalogue: bytes | None = None,
) -> None:
    """Writes or replaces a portable model. At any moment each file is complete, old or new, and matches the record.

    Args:
        weights: UGT's state dict, full tensors.
        facts: strings stored in the header of the weights file, such as the catalogue's fingerprint and the batch.
        catalogue: `catalogue_copy` of the catalogue that the model was trained with; None without one.

    Raises:
        OSError: it cannot be written. An earlier model in the folder is kept.
    """
    folder = Path(folder)
    folder.mkdir(exist_ok=True)  # not its parents: if the save folder was removed, this must fail, not create it again
    temporary, config_temporary, copy_temporary = (folder / f"{name}.tmp" for name in (WEIGHTS, CONFIG, CATALOGUE_COPY))
    with or_removed(temporary, config_temporary, copy_temporary):
        written = {
            WEIGHTS: _write_weights(temporary, weights, facts),
            CONFIG: write_hashed(config_temporary, lambda file: file.write(config_yaml(config).encode())),
        }
        if catalogue is not None:
            written[CATALOGUE_COPY] = write_hashed(copy_temporary, lambda file: file.write(catalogue))
        put_in_place(folder / RECORD, written)


def _write_weights(path: Path, weights: dict[str, Tensor], facts: dict[str, str]) -> Facts:
    path.touch()
    mode = path.stat().st_mode & 0o777  # the mode that the user's umask gives
    cpu_weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    try:
        save_file(cpu_weights, path, metadata=facts)
        path.chmod(mode)  # safetensors creates the file readable for its owner only
        sync_file(path)
        forget_cached(path)
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            same = names == cpu_weights.keys() and all(
                _same_bits(file.get_tensor(name), cpu_weights[name]) for name in names
            )
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from None
    if not same:
        raise unlike_written(path)
    return facts_of(path)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit for bit; a NaN equals itself."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def weights_hash(model_folder: Path) -> str:
    """Identifies a model by the content of its weights' file."""
    return f"xxh64:{file_hash('xxh64', model_folder / WEIGHTS)}"


def check_portable(folder: str | Path) -> None:
    """Raises UserError if a file does not match the folder's record. A folder without a record passes."""
    path = Path(folder) / RECORD
    try:
        record = read_record(path)
    except CorruptedRecordError as error:
        raise UserError(
            f"{path} {error}: copy or train the model again, or remove that file to load the folder unchecked"
        ) from None
    if record is None or (mismatch := first_corruption(path.parent, record)) is None:
        return
    name, corruption = mismatch
    raise UserError(
        f"{path.parent / name} {corruption}: it was corrupted or changed after it was written; copy or train the model "
        f"again, or remove {RECORD} beside it if the change was intended"
    )


def load_portable(folder: str | Path, **changes: Any) -> tuple[UGT, Config, dict[str, str]]:
    """The model in evaluation mode, its config and its facts. Raises UserError if the folder is no portable model.

    Args:
        changes: values of `model.*` keys, such as dropout, that override those in the folder's config.
    """
    path = _existing(folder, CONFIG)
    check_portable(folder)
    config = load_config(path)
    config = replace(config, model=replace(config.model, **changes))
    model = build_model(config.model, config.seed)
    facts = _load_checked(model, config.model, folder)
    return model.eval(), config, facts


def read_facts(folder: str | Path) -> dict[str, str]:
    """The facts of a portable model, without its weights. Raises UserError if it is corrupted."""
    check_portable(folder)
    path = _existing(folder, WEIGHTS)
    try:
        with safe_open(path, "pt") as file:
            return dict(sorted((file.metadata() or {}).items()))  # safetensors has no order
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None


def load_weights(model: UGT, config: ModelConfig, folder: str | Path) -> dict[str, str]:
    """Loads the weights of a portable model into `model`, strict about names and shapes. Returns the facts.

    A saved model that does not read an input (actions, times) that `model` reads leaves the weights for that input as
    they are: at zero, if the model is new, so that it computes what the saved one does.

    Args:
        config: what `model` was built from; used to compare keys that change no shape, such as the number of heads.

    Raises:
        UserError: naming the folder and what is missing, corrupted, unexpected, of another shape or configuration.
    """
    check_portable(folder)
    return _load_checked(model, config, folder)


def check_weights(model: UGT, config: ModelConfig, folder: str | Path) -> None:
    """Compares the weights of a portable model with `model`, which may be on the meta device. Reads only shapes.

    Args:
        config: what `model` was built from.

    Raises:
        UserError: naming the folder and what is missing, unexpected, of another shape or configuration.
    """
    path, saved_config = _existing(folder, WEIGHTS), load_config(_existing(folder, CONFIG)).model
    for field in fields(ModelConfig):
        before, now = getattr(saved_config, field.name), getattr(config, field.name)
        if field.metadata[DEFINES_WEIGHTS] and before != now:
            raise UserError(
                f"{folder} was trained with model.{field.name} = {before}, now it is {now}: the weights have the right "
                "shapes, but would mean something else; set it back"
            )
    added = _added_keys(folder, saved_config, config)
    try:
        with safe_open(path, "pt") as file:
            saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [
        _listed("missing", sorted(name for name in expected.keys() - saved.keys() if not is_added_by(name, added))),
        _listed("unexpected", sorted(saved.keys() - expected.keys())),
        _listed(
            "of another shape",
            [
                f"{name} {saved[name]}, the config gives {expected[name]}"
                for name in sorted(expected.keys() & saved.keys())
                if saved[name] != expected[name]
            ],
        ),
    ]
    if any(problems):
        # Other keys, such as dropout, change no shape.
        keys = [field.name for field in fields(ModelConfig) if field.metadata[ON_RESUME] is FIXED]
        changed = ", ".join(
            f"model.{key} was {before}, now it is {now}"
            for key in keys
            if (before := getattr(saved_config, key)) != (now := getattr(config, key))
        )
        raise UserError(f"{path} does not fit model.*: {'; '.join(filter(None, [changed, *problems]))}")


def _load_checked(model: UGT, config: ModelConfig, folder: str | Path) -> dict[str, str]:
    check_weights(model, config, folder)
    path = _existing(folder, WEIGHTS)
    try:
        with safe_open(path, "pt") as file:
            facts = dict(sorted((file.metadata() or {}).items()))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None
    model.load_state_dict(weights, strict=False)  # those that an added key brings stay as they are
    return facts


def _added_keys(folder: str | Path, saved: ModelConfig, now: ModelConfig) -> list[str]:
    """The keys that add weights to a model which the saved one does not have.

    Raises:
        UserError: such a key of the saved model is off or has another value in the model.
    """
    for key in OPTIONAL_WEIGHTS:
        before, value = getattr(saved, key), getattr(now, key)
        if before and before != value:
            raise UserError(
                f"{folder} was trained with model.{key} = {before}, now it is {value}: a model keeps what it "
                f"was trained with; set model.{key}={before}"
            )
    return [key for key in OPTIONAL_WEIGHTS if getattr(now, key) and not getattr(saved, key)]


def fingerprint_facts(catalogue: Catalogue | None, manifests: Sequence[Manifest] = ()) -> dict[str, str]:
    """The fingerprint of a run's catalogue, or else of the one that its shards record, as a model's header has it."""
    if catalogue is not None:
        return {FINGERPRINT: catalogue.fingerprint}
    recorded = [manifest.catalogue for manifest in manifests if manifest.catalogue is not None]
    return {DATA_FINGERPRINT: recorded[0]} if recorded else {}


def check_fingerprint(
    name: str,
    folder: Path,
    facts: dict[str, str],
    own: dict[str, str],
    catalogue: Catalogue | None = None,
    current_name: str = "the current one",
) -> str | None:
    """Compares the catalogue that a model was trained with, or that of its shards, with the current one.

    Args:
        name: of the model, for messages.
        folder: the model's, on this machine.
        facts: of the model.
        own: facts with the fingerprint of the current catalogue or shards.
        catalogue: the current one, which may have more items than that of the model; None: they have to be equal.
        current_name: of the current one, for messages.

    Returns:
        A note for the user if the catalogue has more items; else None.

    Raises:
        UserError: an item of the model's catalogue is missing, or has another semantic ID; the first ones are named.
    """
    trained, current = (either.get(FINGERPRINT) or either.get(DATA_FINGERPRINT) for either in (facts, own))
    if not trained or not current or trained == current:
        return None
    if catalogue is None:
        raise _other_catalogue(name, trained, current_name, current, UNKNOWN_ITEMS)
    earlier = trained_catalogue(name, folder, facts, catalogue)
    return (
        f"{name} was trained with {len(earlier):,} of the {len(catalogue):,} items of {catalogue.source}; the others "
        "have untrained entries, unless `ugt extend` gives them entries from their vectors"
    )


def trained_catalogue(name: str, folder: Path, facts: dict[str, str], catalogue: Catalogue) -> Catalogue:
    """The catalogue that a model was trained with, which the given one has to contain.

    Args:
        name, folder, facts: of the model, see `check_fingerprint`.

    Raises:
        UserError: it is not known, or an item of it is missing in the given one, or has another semantic ID.
    """
    trained = facts.get(FINGERPRINT) or facts.get(DATA_FINGERPRINT)
    if trained is None:
        raise UserError(f"{name} was trained without a catalogue, so it is not known which items it knows")
    places = (folder / CATALOGUE_COPY, load_config(folder / CONFIG).data.catalogue, catalogue.source)
    earlier = find_catalogue(trained, places)
    difference = UNKNOWN_ITEMS if earlier is None else not_contained(earlier, catalogue)
    if earlier is None or difference is not None:
        raise _other_catalogue(name, trained, catalogue.source, catalogue.fingerprint, str(difference))
    return earlier


def _other_catalogue(name: str, trained: str, current_name: str, current: str, difference: str) -> UserError:
    return UserError(
        f"{name} was trained with a catalogue of fingerprint {trained[:12]}, {current_name} has {current[:12]}: the "
        f"same semantic ID would mean another item ({difference}); use the catalogue that the model was trained with, "
        "or one that contains it"
    )


def read_copy(folder: Path) -> bytes | None:
    """The copy of the catalogue that a model was trained with; None if the folder has none."""
    return (folder / CATALOGUE_COPY).read_bytes() if (folder / CATALOGUE_COPY).is_file() else None


def check_exists(key: str, folder: str | Path, otherwise: str = "") -> None:
    """UserError with the key that names a folder, if that is no portable model.

    Args:
        otherwise: ends the message.
    """
    try:
        _existing(folder, WEIGHTS)
        _existing(folder, CONFIG)
    except UserError as error:
        raise UserError(f"{key} is {folder}; {error}{otherwise}") from None


def _existing(folder: str | Path, name: str) -> Path:
    path = Path(folder) / name
    if path.is_file():
        return path
    of_run = [place for place in (path.parent / "best", path.parent.with_name("best")) if (place / name).is_file()]
    hint = (
        f"did you mean {of_run[0]}?" if of_run else f"expected the best/ of a trained stage, with {WEIGHTS}, {CONFIG}"
    )
    raise UserError(f"{path}: no such file{where_searched(path)}; {hint}")


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be read as safetensors ({error}); copy or train the model again")


def _listed(what: str, names: list[str], most: int = 5) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {what} ({', '.join(names[:most])}{more})"
