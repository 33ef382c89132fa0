"""Run by test_memory.py on the driver: rank 0 of any number of ranks, two batches of a shipped stage and an evaluation
batch. Prints PyTorch's memory peaks and the dry run's estimates as JSON.

python tests/rehearsal/memory_step.py YAML WORLD HISTORY TARGET ITEMS [key=value …]
"""

import json
import os
import sys
from dataclasses import asdict, replace

import numpy as np
import torch
import torch.distributed as dist

from tests.rehearsal.without_numbers import accept_zeros
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.config.load import load_config
from ugt_composer.config.schema import Config
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.model.build import freeze_untrained
from ugt_composer.model.reference import Reference
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.build import build_strategy
from ugt_composer.parallelism.strategy import Strategy
from ugt_composer.training.composer_model import ComposerUGT
from ugt_composer.training.memory_estimate import estimate
from ugt_composer.training.optim import create_optimizer

MICROBATCHES = 2


def full_batch(rows: int, history: int, target: int, rejected: int) -> dict[str, torch.Tensor]:
    def ids(*shape: int) -> torch.Tensor:
        return torch.full((*shape, 3), 7, device="cuda")

    def side(name: str, width: int) -> dict[str, torch.Tensor]:
        numbers = torch.ones(rows, width, dtype=torch.long, device="cuda")
        tokens = {f"{name}_ids": ids(rows, width), f"{name}_positions": numbers, f"{name}_token_types": numbers}
        return tokens | {f"{name}_mask": numbers.bool()}

    return {
        **side("encoder", history),
        **side("decoder", target),
        "labels": ids(rows, target),
        "rejected_ids": ids(rows, rejected),
        "rejected_mask": torch.ones(rows, rejected, dtype=torch.bool, device="cuda"),
        "preference_score": torch.ones(rows, device="cuda"),
        "row_ids": torch.arange(rows, device="cuda"),
        "row_mask": torch.ones(rows, dtype=torch.bool, device="cuda"),
        "batch_totals": torch.ones(6, device="cuda"),
    }


def build(config: Config, precision: str, items: int) -> tuple[ComposerUGT, Strategy]:
    with torch.device("cuda"):
        model = UGT(**asdict(config.model))
        loss = UnifiedLoss(**config.loss.arguments, repr_dim=config.model.d_model, seed=config.seed)
        reference = Reference(UGT(**asdict(config.model))) if config.loss.needs_reference_model else None
    freeze_untrained(model, config.loss)
    checkpointing = config.parallelism.activation_checkpointing
    model.encoder.activation_checkpointing = model.decoder.activation_checkpointing = checkpointing
    generator = np.random.default_rng(0)
    trie = ItemTrie.from_triples(np.stack([generator.integers(5, v, items) for v in config.model.codebook_sizes], 1))
    evaluation = config.evaluation
    whole = ComposerUGT(
        model,
        loss,
        None,
        trie.to("cuda"),
        evaluation.k_values,
        evaluation.beam_width,
        evaluation.exclude_seen,
        evaluation.item_score_weight,
    )
    strategy = build_strategy(
        config, whole, model, lambda placed: create_optimizer(placed, **asdict(config.optimizer)), precision
    )
    if reference is not None:
        sharded = config.parallelism.shard_reference
        whole.set_reference((strategy.shard_reference if sharded else strategy.place_reference)(reference))
    return whole, strategy


def main() -> None:
    yaml, world, history, target, items, *overrides = sys.argv[1:]
    accept_zeros()
    config = load_config(yaml, overrides=overrides)
    rows = int(config.device_train_microbatch_size)
    config = replace(config, global_train_batch_size=MICROBATCHES * rows * int(world))
    rejected = int(config.loss.lambda_preference > 0)
    shape = (int(history), int(target), rejected)
    os.environ |= {"MASTER_ADDR": "localhost", "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": world}
    os.environ["LOCAL_WORLD_SIZE"] = str(min(8, int(world)))
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", store=dist.HashStore(), world_size=int(world), rank=0)
    expected = estimate(config, int(world), shape, int(items))
    whole, strategy = build(config, expected.precision, int(items))
    module = strategy.module
    if config.parallelism.strategy == "ddp" and int(world) > 1:
        module = torch.nn.parallel.DistributedDataParallel(module, device_ids=[0])
    half = expected.precision != "fp32" and config.parallelism.strategy != "deepspeed"
    peaks = {}
    for _ in range(2):  # the first creates the optimizer's state
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        module.train()
        strategy.optimizer.zero_grad(set_to_none=True)
        batch = full_batch(rows, *shape)
        for number in range(MICROBATCHES):
            strategy.before_microbatch(is_last=number == MICROBATCHES - 1)
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                outputs = module(batch)  # kept until the next microbatch has its own, as in Composer's state
                loss = whole.loss(outputs, batch)["total"]
            (loss if strategy.scaler is None else strategy.scaler.scale(loss)).backward()
            del loss
        strategy.clip_gradients(config.max_grad_norm)
        strategy.optimizer.step()
        whole.step_metrics = {}
        peaks["step"], peaks["reserved"] = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    del outputs, batch
    torch.cuda.empty_cache()
    peaks["between steps"] = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=half):
        whole.eval()
        whole.eval_forward(full_batch(config.device_eval_batch_size, *shape))  # type: ignore[arg-type]
    peaks["evaluation"] = torch.cuda.max_memory_allocated()
    print(json.dumps({**peaks, "expected": expected.peak, "expected evaluation": expected.evaluation_peak}))
    sys.stdout.flush()
    os._exit(0)  # no other rank would answer the cleanup of process groups


main()
