"""What a pickle would call, found without calling it.

PyTorch's distributed checkpoint and DeepSpeed unpickle their files with Python's own pickle, which does whatever a file
says. Therefore the files are looked through before they are handed over.
"""

import pickle
import re
import tarfile
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from pathlib import Path
from typing import Any

# What the shards of the strategies consist of. None of these does more than make an object.
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
    "torch._tensor": {"_rebuild_from_type_v2"},  # calls what it is given, which is one of these
    "torch._utils": {"_rebuild_parameter", "_rebuild_tensor_v2"},
    "torch.nn.parameter": {"Parameter"},
    "torch.serialization": {"_get_layout"},
    "torch.storage": {"UntypedStorage"},
    "torch.torch_version": {"TorchVersion"},
    # BytesStorageMetadata is not among them: PyTorch unpickles what it stands for.
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
STORAGES_AND_DTYPES = re.compile(r"[A-Z][A-Za-z0-9]*Storage|(b?float|complex|u?int)\d+|bool")  # of torch
ZIP, OLD_FORM = b"PK\x03\x04", 0x1950A86A20F9469CFC6C  # how torch.save's files begin


def forbidden(shards: Path) -> str | None:
    """What is wrong with a sharded checkpoint's files, as "a.pt calls os.system"; None where all are harmless."""
    for path in sorted(shards.rglob("*")):
        if path.name != ".metadata" and path.suffix != ".pt":
            continue
        name = path.relative_to(shards).as_posix()
        try:
            strange = sorted(called for called in names_called(path) if not _is_harmless(*called))
        except Exception as error:  # a torn file can fail in any way
            return f"{name} cannot be read ({error})"
        if strange:
            return f"{name} calls {'.'.join(strange[0])}, which no checkpoint needs: nothing in it was executed"
    return None


def _is_harmless(module: str, name: str) -> bool:
    return name in HARMLESS.get(module, ()) or (module == "torch" and bool(STORAGES_AND_DTYPES.fullmatch(name)))


class _Anything:
    """Stands for every class and function that a pickle names: takes what comes and does nothing."""

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
        # As pickle itself understands the names of its older protocols: __builtin__ is builtins.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.names.add((module, name))
        return _Anything

    def persistent_load(self, _: Any) -> Any:
        return _Anything()


def names_called(path: Path) -> set[tuple[str, str]]:
    """(module, name) of each class and function that unpickling a file would reach for.

    Raises:
        Exception: of any kind, where it is neither torch.save's, old or new form, nor `.metadata`.
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
        if first != OLD_FORM or tarfile.is_tarfile(path):  # torch.load would take a tar file too
            raise ValueError("no file of torch.save")
        for _ in range(4):  # protocol, machine, content, keys of the storages; the rest is raw numbers
            names |= _names_of(file)[0]
        return names


def _names_of(file: Any) -> tuple[set[tuple[str, str]], Any]:
    unpickler = _Names(file)
    content = unpickler.load()
    return unpickler.names, content
