"""A model that the next stage, the command line and a stranger can load: `model.safetensors` and `config.yaml`."""

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ugt_composer.config import Config, ModelConfig, config_yaml, load_config
from ugt_composer.errors import UserError
from ugt_composer.model.build import build_model
from ugt_composer.model.ugt import UGT

WEIGHTS, CONFIG = "model.safetensors", "config.yaml"
FINGERPRINT = "catalogue_fingerprint"
WIRING = ("n_heads", "top_k_experts", "attention_activation", "user_pooling")  # shows in no shape


def save_portable(folder: str | Path, weights: dict[str, Tensor], config: Config, facts: dict[str, str]) -> None:
    """Writes or replaces a portable model. Each file is complete or the old one: written beside it, then renamed.

    Args:
        weights: UGT's state dict, full tensors.
        facts: strings kept in the weights' header, such as the catalogue's fingerprint and the batch.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (WEIGHTS + ".tmp")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, temporary, metadata=facts)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    (folder / (CONFIG + ".tmp")).write_text(config_yaml(config), "utf-8")
    os.replace(folder / (CONFIG + ".tmp"), folder / CONFIG)
    os.replace(temporary, folder / WEIGHTS)


def load_portable(folder: str | Path) -> tuple[UGT, Config, dict[str, str]]:
    """The model in evaluation mode, its config and its facts. UserError where the folder is no portable model."""
    config = load_config(_existing(folder, CONFIG))
    model = build_model(config.model, config.seed)
    facts = load_weights(model, config.model, folder)
    return model.eval(), config, facts


def load_weights(model: UGT, config: ModelConfig, folder: str | Path) -> dict[str, str]:
    """Loads the weights of a portable model into `model`, strict about names and shapes. Returns the facts.

    Args:
        config: what `model` was built from; what no shape shows, such as the number of heads, is compared by it.

    Raises:
        UserError: naming the folder and what is missing, unexpected, of another shape or otherwise wired.
    """
    path, theirs = _existing(folder, WEIGHTS), load_config(_existing(folder, CONFIG)).model
    for key in WIRING:
        if getattr(theirs, key) != getattr(config, key):
            raise UserError(
                f"{folder} was trained with model.{key} = {getattr(theirs, key)}, now it is {getattr(config, key)}: "
                "the weights would fit and mean something else; set it back"
            )
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error}); copy or train the model again") from None
    own = model.state_dict()
    problems = [
        _listed("missing", sorted(own.keys() - weights.keys())),
        _listed("unexpected", sorted(weights.keys() - own.keys())),
        _listed(
            "of another shape",
            [
                f"{name} {tuple(weights[name].shape)}, the config makes {tuple(own[name].shape)}"
                for name in sorted(own.keys() & weights.keys())
                if weights[name].shape != own[name].shape
            ],
        ),
    ]
    if any(problems):
        raise UserError(f"{path} does not fit model.*: {'; '.join(filter(None, problems))}")
    model.load_state_dict(weights)
    return facts


def check_fingerprint(folder: str | Path, facts: dict[str, str], own: dict[str, str]) -> None:
    """UserError where a model was trained with another catalogue than the one given."""
    theirs, ours = facts.get(FINGERPRINT), own.get(FINGERPRINT)
    if theirs and ours and theirs != ours:
        raise UserError(
            f"{folder} was trained with a catalogue of fingerprint {theirs[:12]}, the catalogue given has {ours[:12]}: "
            "the same semantic ID would mean another item; use the catalogue it was trained with"
        )


def _existing(folder: str | Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; expected a folder such as checkpoints/stage1/best with {WEIGHTS}, {CONFIG}"
        )
    return path


def _listed(what: str, names: list[str], most: int = 5) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {what} ({', '.join(names[:most])}{more})"
