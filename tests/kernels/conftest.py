"""Without Triton (a CPU build of PyTorch, macOS) there is nothing to test here."""

import importlib.util

NEED_TRITON = ["test_group_layer_norm.py", "test_layers.py", "test_operations.py", "test_pointwise_attention.py"]
collect_ignore = [] if importlib.util.find_spec("triton") else NEED_TRITON
