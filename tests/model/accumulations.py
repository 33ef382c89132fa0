"""Operations whose result depends on the order of atomics on a GPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Accumulations(TorchDispatchMode):
    """Records the names of operations that add into indexed places, which a GPU does by atomics. Those that use no
    place twice are exact in any order and are not recorded."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in ("index_put", "index_put_", "_index_put_impl_") and (args[3:4] == (True,) or "accumulate" in kwargs):
            places = torch.stack(torch.broadcast_tensors(*args[1]), -1).flatten(0, -2)
            if len(places.unique(dim=0)) < len(places):
                self.found.append(name)
        elif any(part in name for part in ("index_add", "scatter_add", "scatter_reduce", "embedding_dense_backward")):
            self.found.append(name)
        return func(*args, **(kwargs or {}))
