"""Private code of other libraries that is overridden, replaced or called: what, why, and how an upgrade is detected.

Each library has one module that lists its patches: `training/composer_patches.py`, `data/streaming_patches.py`,
`parallelism/deepspeed_patches.py` and `torch_patches.py`. A run checks them when it starts; a test fails with the name
of the code that has changed; `docs/architecture.md` lists them in tables, with what each one is worth.
"""

import hashlib
import inspect
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

from ugt_composer.errors import UserError

log = logging.getLogger(__name__)

# Versions that the patches were written for.
WRITTEN_FOR = {"mosaicml": "0.32.1", "mosaicml-streaming": "0.13.0", "deepspeed": "0.19.8", "torch": "2.7.0"}


@dataclass(frozen=True)
class Patch:
    """
    Attributes:
        target: "module:qualified.name" in the library.
        what: whether the target is overridden, replaced, called or read, and to what effect.
        why: what goes wrong without the patch, or what that costs.
        until: what would make the patch unnecessary.
        sources: hashes of the target's source in all versions that the patch is known to work with; () if there is no
            source.
    """

    target: str
    what: str
    why: str
    until: str
    sources: tuple[str, ...] = ()


def check_patches(library: str, patches: Iterable[Patch]) -> None:
    """Logs a warning for each target whose source is not one that its patch is known to work with.

    Raises:
        UserError: the installed version has no such target.
    """
    sources = [(patch, source_hash(find(library, patch))) for patch in patches]
    changed = [
        f"{patch.target} ({patch.what})" for patch, source in sources if patch.sources and source not in patch.sources
    ]
    if changed:
        log.warning(
            "the installed %s %s was never tested with this version of ugt_composer, which depends on code that has "
            "changed in it: %s",
            library,
            version(library),
            "; ".join(changed),
        )


def find(library: str, patch: Patch) -> Any:
    """The object that a patch names. UserError if the installed version does not have it."""
    module, _, path = patch.target.partition(":")
    try:
        target: Any = import_module(module)
        for name in path.split("."):
            target = inspect.getattr_static(target, name)
    except (ImportError, AttributeError):
        raise UserError(
            f"the installed {library} {version(library)} has no {patch.target}, unlike {WRITTEN_FOR[library]}; "
            f"expected {library}=={WRITTEN_FOR[library]}"
        ) from None
    return target


def source_hash(target: Any) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of an object's source; "" if it has none."""
    if isinstance(target, property):
        target = target.fget
    target = _without_decorators(getattr(target, "__func__", target))  # of a static or class method
    try:
        return hashlib.sha256(inspect.getsource(target).encode()).hexdigest()[:12]
    except (TypeError, OSError):
        return ""


def _without_decorators(target: Any) -> Any:
    """The function that decorators wrap, those of DeepSpeed too, which do not set `__wrapped__`."""
    target = inspect.unwrap(target) if callable(target) else target
    while inspect.isfunction(target) and "<locals>" in target.__qualname__:
        wrapped = [cell.cell_contents for cell in target.__closure__ or () if inspect.isfunction(cell.cell_contents)]
        if len(wrapped) != 1:
            break
        target = wrapped[0]
    return target
