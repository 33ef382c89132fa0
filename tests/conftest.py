"""Small models and batches that every test may use."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed
from hypothesis import settings

from tests.shop import ended, module_in_cwd, shop, stage_config, stages  # noqa: F401 - fixtures
from tests.storage.s3_server import bucket, store  # noqa: F401 - fixtures
from ugt_composer.config.schema import ModelConfig
from ugt_composer.data.batch import Batch
from ugt_composer.vocabulary import BOS, ITEM, NUM_SPECIAL_IDS

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported; tests/kernels need it

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
CODEBOOKS = (16, 24, 40)
TINY = ModelConfig(
    d_model=32,
    n_heads=4,
    n_encoder_layers=2,
    n_decoder_layers=2,
    d_ff=48,
    dropout=0.0,
    max_seq_len=64,
    codebook_sizes=CODEBOOKS,
    num_experts=4,
    top_k_experts=2,
    expert_capacity_factor=None,
)
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="module", autouse=True)
def no_process_group_left():
    """Destroys the process group after each module: runs in this process reuse it, and the next module must not."""
    yield
    if torch.distributed.is_initialized():
        time.sleep(0.1)  # until gloo's thread has released the last collective: see rank_processes.py
        torch.distributed.destroy_process_group()


@pytest.fixture
def tiny_model():
    """tiny_model(seed=0, **changes) → a UGT of width 32 in evaluation mode."""
    from ugt_composer.model.build import build_model

    return lambda seed=0, **changes: build_model(replace(TINY, **changes), seed).eval()


@pytest.fixture
def random_batch() -> Callable[..., Batch]:
    """random_batch(rows, history, target, rejected, seed) → a batch of rows of random lengths."""
    return make_batch


def random_ids(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """(*shape, 3) ids, none of them special."""
    levels = [torch.randint(NUM_SPECIAL_IDS, size, shape, generator=generator) for size in CODEBOOKS]
    return torch.stack(levels, dim=-1)


def make_batch(rows: int = 4, history: int = 7, target: int = 3, rejected: int = 0, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def mask(width: int) -> torch.Tensor:
        lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
        lengths[0] = width
        return torch.arange(width) < lengths

    encoder_mask, decoder_mask = mask(history), mask(target)
    decoder_ids = random_ids(generator, rows, target)
    decoder_ids[:, 0] = BOS
    batch: Batch = {
        "encoder_ids": random_ids(generator, rows, history) * encoder_mask[..., None],
        "encoder_positions": torch.arange(history).expand(rows, -1) * encoder_mask,
        "encoder_token_types": torch.randint(0, 4, (rows, history), generator=generator),
        "encoder_mask": encoder_mask,
        "encoder_actions": torch.zeros(rows, history, dtype=torch.long),
        "encoder_times": torch.full((rows, history), -1),
        "decoder_ids": decoder_ids * decoder_mask[..., None],
        "decoder_positions": torch.arange(target).expand(rows, -1) * decoder_mask,
        "decoder_token_types": torch.full((rows, target), ITEM),
        "decoder_mask": decoder_mask,
        "decoder_times": torch.full((rows, target), -1),
        "labels": random_ids(generator, rows, target).masked_fill(~decoder_mask[..., None], -100),
        "rejected_ids": random_ids(generator, rows, rejected),
        "rejected_mask": torch.ones(rows, rejected, dtype=torch.bool),
        "preference_score": torch.ones(rows),
        "row_ids": torch.arange(rows),
        "row_mask": torch.ones(rows, dtype=torch.bool),
    }
    return batch
