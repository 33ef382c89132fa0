"""What is overridden or called of other libraries' private code is what it was when the patch was written."""

import ast
import inspect
import logging
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from tests.shop import ROOT
from ugt_composer import torch_patches
from ugt_composer.data import streaming_patches
from ugt_composer.errors import UserError
from ugt_composer.parallelism import deepspeed_patches
from ugt_composer.patches import Patch, check_patches, find, source_hash
from ugt_composer.training import composer_patches

LIBRARIES = {
    "mosaicml": composer_patches.PATCHES,
    "mosaicml-streaming": streaming_patches.PATCHES,
    "deepspeed": deepspeed_patches.PATCHES,
    "torch": [*torch_patches.PATCHES, *torch_patches.FSDP_PATCHES],
}
ALL = [pytest.param(library, patch, id=patch.target) for library, patches in LIBRARIES.items() for patch in patches]
PATCH = composer_patches.PATCHES[0]


@pytest.fixture(scope="module", autouse=True)
def deepspeed_on_the_cpu():
    deepspeed_patches.import_deepspeed(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@pytest.mark.parametrize(("library", "patch"), ALL)
def test_the_source_is_one_that_the_patch_was_written_for(library, patch):
    source = source_hash(find(library, patch))
    assert not source or source in patch.sources, (
        f"{patch.target} of {library} {version(library)} has changed ({source}): read it, adapt the patch "
        f"({patch.what}), and add the hash"
    )


@pytest.mark.parametrize(("library", "patch"), ALL)
def test_the_architecture_has_every_patch_in_a_table(library, patch):
    row = f"| `{patch.target.partition(':')[2]}` | {patch.what} | {patch.why} | {patch.until} |"
    assert row in (ROOT / "docs/architecture.md").read_text("utf-8").splitlines()


def overridden_private_methods() -> set[str]:
    """Of classes that this package inherits from other libraries: "Trainer._train_batch"."""
    names = set()
    for path in sorted((ROOT / "ugt_composer").rglob("*.py")):
        classes = [node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
        if not classes or path.name == "export_usage.py":
            continue
        module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for kind in (getattr(module, name) for name in classes):
            for base in inspect.getmro(kind)[1:]:
                if base.__module__.startswith(("composer.", "streaming.", "deepspeed.", "torch.")):
                    private = {name for name, value in vars(kind).items() if is_private_method(name, value)}
                    names |= {f"{base.__name__}.{name}" for name in private & set(vars(base))}
    return names


def is_private_method(name: str, value: object) -> bool:
    return name.startswith("_") and not name.startswith("__") and inspect.isfunction(value)


def test_every_private_method_that_is_overridden_is_listed():
    listed = {patch.target.partition(":")[2] for patches in LIBRARIES.values() for patch in patches}
    overridden = overridden_private_methods()
    assert "Trainer._train_batch" in overridden
    assert overridden <= listed


def test_a_changed_source_is_a_warning_with_its_name(caplog):
    with caplog.at_level(logging.WARNING, "ugt_composer"):
        check_patches("mosaicml", [replace(PATCH, sources=("0" * 12,))])
    assert PATCH.target in caplog.text
    assert version("mosaicml") in caplog.text


def test_a_missing_target_is_an_error_with_the_version_to_install():
    patch = Patch("composer.trainer.trainer:Trainer._gone", "called", "", "")
    with pytest.raises(UserError, match=r"has no composer\.trainer\.trainer:Trainer\._gone.*mosaicml==0\.32\.1"):
        check_patches("mosaicml", [patch])


def test_patches_are_in_one_module_a_library():
    modules = {path.name for path in Path(ROOT / "ugt_composer").rglob("*_patches.py")}
    assert modules == {"composer_patches.py", "streaming_patches.py", "deepspeed_patches.py", "torch_patches.py"}


def test_the_source_of_a_decorated_function_is_its_own():
    def decorator(function):
        def wrapped_fn(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapped_fn

    def first():
        return 1

    def second():
        return 2

    assert source_hash(decorator(decorator(first))) == source_hash(first) != source_hash(decorator(second))
