"""Private code of other libraries that is overridden, replaced or called: what, why, and how an upgrade is noticed.

One module a library lists its patches: `training/composer_patches.py`, `data/streaming_patches.py`,
`parallelism/deepspeed_patches.py` and `torch_patches.py`. A run checks them when it starts; a test fails with the name
of what has changed; `docs/architecture.md` has the table, with what each is worth.
"""

import hashlib
import inspect
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ugt_composer.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patch:
    """
    Attributes:
        target: "module:qualified.name" in the library.
        what: overridden, replaced, called or read, and to what effect.
        why: what goes wrong, or what it costs, without.
        since: version of the library that it was written for.
        until: what would make it unnecessary.
        sources: hashes of the target's source in the versions that it is known to work with; () where it has none.
    """

    target: str
    what: str
    why: str
    since: str
    until: str
    sources: tuple[str, ...] = ()


def check_patches(library: str, patches: Iterable[Patch]) -> None:
    """Warns of each target whose source is another than the one that the patch was written for.

    Raises:
        UserError: the installed version has no such target.
    """
    for patch in patches:
        source = source_hash(find(library, patch))
        if patch.sources and source not in patch.sources:
            log.warning(
                "%s of the installed %s is not the one that its patch was written for (%s); what the patch does (%s) "
                "may be wrong now",
                patch.target,
                library,
                patch.since,
                patch.what,
            )


def find(library: str, patch: Patch) -> Any:
    """The object that a patch names. UserError where the installed version has none."""
    module, _, path = patch.target.partition(":")
    try:
        target: Any = import_module(module)
        for name in path.split("."):
            target = inspect.getattr_static(target, name)
    except (ImportError, AttributeError):
        raise UserError(
            f"the installed {library} has no {patch.target}, which was in {patch.since}; install the version that "
            "constraints.txt names"
        ) from None
    return target


def source_hash(target: Any) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of an object's source; "" where it has none."""
    if isinstance(target, property):
        target = target.fget
    target = getattr(target, "__func__", target)  # of a static or class method
    try:
        return hashlib.sha256(inspect.getsource(target).encode()).hexdigest()[:12]
    except (TypeError, OSError):
        return ""
