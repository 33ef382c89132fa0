"""Tests for a machine with a GPU: `make test-gpu`. All are skipped on other machines."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.shop import add_actions_and_times, stage_arguments, to_shards
from ugt_composer.config.load import load_config

# PyTorch reads it once per process, and runs with and without `deterministic` share the process here.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# cpu: runs these tests without a GPU, except those that need one (`make test-slow`).
DEVICE = os.environ.get("UGT_TEST_DEVICE", "cuda")
CARD_ONLY = ("fp16", "tf32", "=auto", "compile", "waits_for_the_gpu")  # in names of tests
DEEPSPEED, STAGE = "parallelism.strategy=deepspeed", "parallelism.deepspeed.zero_stage="
STRATEGIES = {
    "ddp": (),
    "fsdp": ("parallelism.strategy=fsdp",),
    "zero-0": (DEEPSPEED, f"{STAGE}0"),
    "zero-1": (DEEPSPEED, f"{STAGE}1"),
    "zero-2": (DEEPSPEED, f"{STAGE}2"),
    "zero-3": (DEEPSPEED, f"{STAGE}3"),
}
PRECISIONS = ("fp32", "amp_bf16", "amp_fp16")
ACTIONS = 3  # in the rows


def reason_to_skip() -> str | None:
    if DEVICE == "cpu":
        return None
    if not torch.cuda.is_available():
        return "no GPU on this machine"
    if torch.ones(2, device="cuda").sum().item() != 2:
        return "the GPU computes nothing: a driver for rehearsals"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    own = [item for item in items if here in item.path.parents]
    reason = reason_to_skip() if own else None
    for item in own:
        item.add_marker(pytest.mark.gpu)
        if reason or (DEVICE == "cpu" and needs_a_card(item.name)):
            item.add_marker(pytest.mark.skip(reason=reason or "needs a GPU"))


def needs_a_card(name: str) -> bool:
    _, _, parameters = name.partition("[")
    is_sharded = any(strategy in parameters for strategy in STRATEGIES if strategy != "ddp")
    return any(word in name for word in CARD_ONLY) or (is_sharded and "amp_bf16" in parameters)


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    return torch.device(DEVICE)


@pytest.fixture(scope="session")
def shop(shop, tmp_path_factory) -> Path:
    """The shop with actions and times in all rows, which most models do not read."""
    folder = tmp_path_factory.mktemp("shop-with-times")
    shutil.copy(shop / "catalogue.jsonl", folder)
    for seed, name in enumerate(("train", "eval", "preference", "preference_eval")):
        shutil.copy(shop / f"{name}.jsonl", folder)
        add_actions_and_times(folder / f"{name}.jsonl", ACTIONS, seed)
        to_shards(folder, name)
    return folder


@pytest.fixture(scope="session")
def trained(shop, tmp_path_factory) -> Path:
    """A folder with stage1 and stage2, the second trained from the first, by DDP in float32."""
    folder = tmp_path_factory.mktemp("trained")
    for stage in (1, 2):
        train(shop, folder / f"stage{stage}", stage, folder / f"stage{stage - 1}/best", "precision=fp32")
    return folder


@pytest.fixture
def run(shop, trained, tmp_path) -> Callable[..., list[dict]]:
    """run(name, stage, *overrides, batches=None) → the lines of its metrics.jsonl."""

    def start(name: str, stage: int, *overrides: str, batches: int | None = None) -> list[dict]:
        return train(shop, tmp_path / name, stage, trained / f"stage{stage - 1}/best", *overrides, batches=batches)

    return start


def train(
    shop: Path,
    out: Path,
    stage: int,
    previous: Path,
    *overrides: str,
    batches: int | None = None,
) -> list[dict]:
    """Trains a stage, or goes on with it: to its end, or for some batches only."""
    from ugt_composer.training.build import build_trainer

    path, *rest = stage_arguments(shop, out, stage, previous)
    trainer = build_trainer(load_config(path, overrides=[*rest, *overrides]))
    if batches is None:
        trainer.train()
    else:
        trainer.fit(duration=f"{batches}ba")
    trainer.close()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("samples/s")} for line in lines]
