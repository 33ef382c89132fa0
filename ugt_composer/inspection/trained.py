"""Facts about models, training checkpoints and the save folders that hold them."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ugt_composer.checkpoint.portable import CONFIG, load_portable
from ugt_composer.checkpoint.run_checkpoints import VERSION, read_checkpoint
from ugt_composer.checkpoint.save_folder import METRICS, PORTABLE, batch_of, list_checkpoints
from ugt_composer.config.load import load_config, version_in
from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError
from ugt_composer.storage.record import RECORD, record_beside

PLACE = ("epoch", "batch", "sample", "batch_in_epoch")
MAIN_KEYS = (
    "run_name",
    "seed",
    "init_from",
    "init_item_vectors",
    "max_duration",
    "global_train_batch_size",
    "precision",
    "ema_decay",
    "loss.lambda_contrastive",
    "loss.lambda_preference",
    "optimizer.name",
    "optimizer.lr",
    "data.catalogue",
    "parallelism.strategy",
)


def model_facts(folder: Path) -> dict[str, Any]:
    """Raises UserError if the model is corrupted or incomplete."""
    model, config, facts = load_portable(folder)
    sizes = config.model
    return {
        "record": _record_state(folder / RECORD),
        "version": version_in(folder / CONFIG),
        "bytes": _bytes(folder),
        "parameters": {
            "total": sum(p.numel() for p in model.parameters()),
            **{name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()},
        },
        "sizes": {
            "codebooks": list(sizes.codebook_sizes),
            "d_model": sizes.d_model,
            "encoder layers": sizes.n_encoder_layers,
            "decoder layers": sizes.n_decoder_layers,
            "heads": sizes.n_heads,
            "experts": f"{sizes.top_k_experts} of {sizes.num_experts}",
            "positions": sizes.max_seq_len,
        },
        "header": facts,
        "config": _main_keys(config),
    }


def checkpoint_facts(path: Path) -> dict[str, Any]:
    """Raises UserError if the checkpoint is corrupted."""
    content = read_checkpoint(path)
    time = content["state"]["timestamp"]["Timestamp"]
    config = OmegaConf.create(content["config"])
    by = content["sharded"]["by"] if "sharded" in content else {"strategy": OmegaConf.select(config, MAIN_KEYS[-1])}
    parameters = (
        {} if "sharded" in content else {"weights and buffers": sum(t.numel() for t in content["model"].values())}
    )
    return {
        "record": _record_state(path / RECORD if path.is_dir() else record_beside(path)),
        "version": content.get(VERSION),
        "bytes": _bytes(path),
        "form": "sharded: one part per rank" if "sharded" in content else "complete: any strategy can resume from it",
        **{name.replace("_", " "): time[name] for name in PLACE},
        **{name.replace("_", " "): value for name, value in by.items() if value is not None},
        **parameters,
        "catalogue": content["catalogue"],
        "data": content["data"],
        "config": _main_keys(config),
    }


def run_facts(folder: Path) -> dict[str, Any]:
    """Does not raise for a corrupted checkpoint or model: its `state` says what is wrong with it."""
    config = {}
    if (folder / CONFIG).is_file():
        config = {"version": version_in(folder / CONFIG), "config": _main_keys(load_config(folder / CONFIG))}
    return {
        **config,
        "checkpoints": [
            {"name": path.name, "batch": batch_of(path), "bytes": _bytes(path), "state": _state(path)}
            for path in list_checkpoints(folder)
        ],
        "models": [_model_line(folder / name) for name in PORTABLE if (folder / name).exists()],
        "earlier runs": sorted(path.name for path in folder.glob("earlier-*")),
        "last step": _last_step(folder / METRICS),
    }


def _state(checkpoint: Path) -> str:
    """Whether a run could resume from it: files that match their record may still not be loadable."""
    try:
        read_checkpoint(checkpoint)
    except UserError as error:
        return str(error).removeprefix(f"{checkpoint}: ")
    return "valid"


def _model_line(folder: Path) -> dict[str, Any]:
    facts: dict[str, str] = {}
    state = "valid"
    try:
        _, _, facts = load_portable(folder)
    except UserError as error:
        state = str(error)
    chosen = ", ".join(f"{name} {value}" for name, value in facts.items() if name.startswith("best "))
    return {"name": folder.name, "batch": facts.get("batch"), "chosen by": chosen, "state": state}


def _last_step(path: Path) -> dict[str, Any]:
    """The last complete line of metrics.jsonl; a running process may have written only part of a line."""
    if not path.is_file():
        return {}
    for line in reversed(path.read_text("utf-8", errors="replace").splitlines()):
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):
            continue
    return {}


def _main_keys(config: Config | Any) -> dict[str, Any]:
    tree = OmegaConf.structured(config) if isinstance(config, Config) else config
    return {key: OmegaConf.select(tree, key) for key in MAIN_KEYS}


def _record_state(record: Path) -> str:
    """For files that were verified against their record, if it exists, before this call."""
    return f"matches {record.name}" if record.is_file() else f"unchecked: {record.name} is missing"


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
