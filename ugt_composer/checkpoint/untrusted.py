"""Lists what a pickle would call, without calling it.

PyTorch's distributed checkpoint and DeepSpeed load their files with Python's pickle, which executes any code that a
file names. The files are therefore checked before they are loaded.
"""

import pickle
import re
import tarfile
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from pathlib import Path
from typing import Any

# The classes and functions in the shards of all strategies. Each of them only creates an object.
HARMLESS = {
    "_codecs": {"encode"},
    "builtins": {"bytearray", "complex", "frozenset", "set", "slice"},
    "collections": {"OrderedDict", "defaultdict", "deque"},
    "datetime": {"timedelta"},
    "pathlib": {"Path", "PosixPath"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "torch": {"Size", "Tensor", "device"},
    "torch._tensor": {"_rebuild_from_type_v2"},  # calls its argument, which must be in this list too
    "torch._utils": {"_rebuild_parameter", "_rebuild_tensor_v2"},
    "torch.nn.parameter": {"Parameter"},
    "torch.serialization": {"_get_layout"},
    "torch.storage": {"UntypedStorage"},
    "torch.torch_version": {"TorchVersion"},
    # Without BytesStorageMetadata: PyTorch unpickles the bytes that it refers to.
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "deepspeed.runtime.fp16.loss_scaler": {"DynamicLossScaler", "LossScaler", "LossScalerBase"},
    "deepspeed.runtime.zero.config": {"ZeroStageEnum"},
    "deepspeed.utils.tensor_fragment": {"fragment_address"},
}
STORAGES_AND_DTYPES = re.compile(r"[A-Z][A-Za-z0-9]*Storage|(b?float|complex|u?int)\d+|bool")  # in module torch
ZIP, LEGACY_MAGIC = b"PK\x03\x04", 0x1950A86A20F9469CFC6C  # start of torch.save's files: zip and legacy format


def forbidden(shards: Path) -> str | None:
    """What is wrong in .metadata or *.pt, such as "a.pt calls os.system"; None if all are harmless.

    PyTorch itself reads .distcp files with weights_only=True.
    """
    for path in sorted(shards.rglob("*")):
        if path.name != ".metadata" and path.suffix != ".pt":
            continue
        file_name = path.relative_to(shards).as_posix()
        try:
            harmful = sorted(name for name in names_called(path) if not _is_harmless(*name))
        except Exception as error:  # a truncated file can fail in any way
            return f"{file_name} cannot be read ({error})"
        if harmful:
            return f"{file_name} calls {'.'.join(harmful[0])}, which no checkpoint needs; nothing in it was executed"
    return None


def _is_harmless(module: str, name: str) -> bool:
    return name in HARMLESS.get(module, ()) or (module == "torch" and bool(STORAGES_AND_DTYPES.fullmatch(name)))


class _Anything:
    """Takes the place of every class and function that a pickle names: accepts any call and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Anything":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> "_Anything":
        return self

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, *_: Any) -> None: ...

    def __hash__(self) -> int:
        return id(self)

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def add(self, _: Any) -> None: ...


class _Names(pickle.Unpickler):
    def __init__(self, file: Any):
        super().__init__(file)
        self.names: set[tuple[str, str]] = set()

    def find_class(self, module: str, name: str) -> Any:
        # Maps Python 2 names of older protocols as pickle does, such as __builtin__ to builtins.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.names.add((module, name))
        return _Anything

    def persistent_load(self, _: Any) -> Any:
        return _Anything()


def names_called(path: Path) -> set[tuple[str, str]]:
    """(module, name) of each class and function that unpickling a file would import.

    Raises:
        Exception: of any kind, if the file is neither `.metadata` nor from torch.save (zip or legacy format).
    """
    with path.open("rb") as file:
        if file.read(len(ZIP)) == ZIP:
            with zipfile.ZipFile(file) as parts:
                pickles = [part for part in parts.infolist() if part.filename.endswith(".pkl")]
                return {name for part in pickles for name in _names_of(parts.open(part))[0]}
        file.seek(0)
        names, first = _names_of(file)
        if path.name == ".metadata":
            return names
        if first != LEGACY_MAGIC or tarfile.is_tarfile(path):  # torch.load would accept a tar file too
            raise ValueError("not a file of torch.save")
        for _ in range(4):  # protocol, machine, content, storage keys; the rest is raw tensor data
            names |= _names_of(file)[0]
        return names


def _names_of(file: Any) -> tuple[set[tuple[str, str]], Any]:
    unpickler = _Names(file)
    content = unpickler.load()
    return unpickler.names, content
