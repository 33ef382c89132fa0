"""Run by test_fsdp_dtypes.py on the driver: a training step under FSDP2 and autocast. Prints its dtypes as JSON.

python tests/rehearsal/fsdp_step.py bfloat16|float16 device|offload CAPACITY_FACTOR
"""

import json
import os
import sys
import tempfile

import torch
import torch.distributed as dist

from tests.parallelism.fsdp_ranks import MICROBATCHES, SMALL, Toy, batch_of, make_optimizer
from ugt_composer.model.build import build_model
from ugt_composer.model.reference import Reference
from ugt_composer.parallelism.fsdp import FsdpStrategy


def main() -> None:
    half, offloads, capacity = getattr(torch, sys.argv[1]), sys.argv[2] == "offload", float(sys.argv[3])
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    rendezvous = f"file://{tempfile.mkdtemp()}/rendezvous"
    dist.init_process_group("nccl", init_method=rendezvous, rank=0, world_size=1, device_id=device)
    toy = Toy(0).train()
    for layer in toy.model.decoder.layers:
        layer.ff.capacity_factor = capacity  # static shapes: no expert's token count is read
    layers = [*toy.model.encoder.layers, *toy.model.decoder.layers]
    strategy = FsdpStrategy(toy, make_optimizer, layers, device, True, half, torch.float32, offloads, False)
    scaler = torch.amp.GradScaler("cuda", enabled=half == torch.float16)
    found: dict[str, list[str]] = {"residual": [], "weights": [], "gradients": [], "references": []}
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda layer, inputs: found["residual"].append(str(inputs[0].dtype)), prepend=True
        )
        layer.register_forward_pre_hook(
            lambda layer, _: found["weights"].extend({str(p.dtype) for p in layer.parameters()})
        )
    batches = []
    for micro in range(MICROBATCHES):
        batch = batch_of(0, 0, micro)
        batches.append({key: value.to(device) for key, value in batch.items()})
        strategy.before_microbatch(is_last=micro == MICROBATCHES - 1)
        with torch.autocast("cuda", half):
            loss = strategy.module(batches[-1], micro == 0)
        scaler.scale(loss).backward()
    scaler.unscale_(strategy.optimizer)
    strategy.clip_gradients(1.0)
    found["gradients"] = [f"{p.grad.dtype} {p.grad.device.type}" for p in toy.parameters() if p.grad is not None]
    scaler.step(strategy.optimizer)
    scaler.update()
    found["input"] = [str(toy.input_dtype)]
    for place in (strategy.place_reference, strategy.shard_reference):
        reference = place(Reference(build_model(SMALL, 0)))
        with torch.autocast("cuda", half):
            found["references"].append(str(reference(batches[0])["logps"].dtype))
            reference(batches[0])
    print(json.dumps({key: sorted(set(values)) for key, values in found.items()}), flush=True)
    os._exit(0)  # PyTorch's cleanup of the fake CUDA may crash


main()
