"""Counts the memory of all live tensors of a process."""

import gc

import torch


def live_storages() -> dict[int, int]:
    """{address: bytes} of the storages of all tensors that Python's garbage collector knows, on this rank."""
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            try:
                storage = getattr(thing, "_local_tensor", thing).untyped_storage()
            except NotImplementedError:  # another thread just emptied it: gloo's after a gather
                continue
            storages[storage.data_ptr()] = max(storage.nbytes(), storages.get(storage.data_ptr(), 0))
    return storages
