"""Which way the packages depend on each other, and what an import costs. Imports inside functions count too."""

import ast
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from tests.shop import ROOT

PACKAGE = ROOT / "ugt_composer"
# A module imports from its own tier and from those above it in this list; two packages never import each other.
TIERS = (
    (
        "errors",
        "command",
        "terminal",
        "vocabulary",
        "seeds",
        "patches",
        "torch_patches",
        "float32_product",
        "row_random",
    ),
    ("config", "storage", "jsonl", "spark", "kernels"),
    ("data", "catalogue"),
    ("conversion", "importing"),
    ("model", "losses", "generation", "metrics"),
    ("parallelism", "job", "checkpoint"),
    ("training",),
    ("inference", "inspection", "train"),
    ("report",),
    ("cli", "demo", "rounds"),
)
# What a package may not import of other libraries, nor of this one although it stands above.
WITHOUT = {
    "config": ("torch", "composer", "streaming"),
    "storage": ("torch", "composer", "streaming"),
    "jsonl": ("torch", "composer", "streaming"),
    "spark": ("torch", "composer", "streaming"),
    "conversion": ("torch", "composer", "deepspeed"),
    "importing": ("torch", "composer", "deepspeed", "ugt_composer.conversion"),
    "kernels": ("composer", "streaming", "deepspeed"),
    "model": ("composer", "streaming", "deepspeed", "ugt_composer.losses", "ugt_composer.conversion"),
    "losses": ("composer", "streaming", "deepspeed", "ugt_composer.conversion"),
    "generation": ("composer", "streaming", "deepspeed", "ugt_composer.model", "ugt_composer.losses"),
    "metrics": ("composer", "streaming", "deepspeed", "ugt_composer.model"),
}


def imports_of(path: Path) -> set[str]:
    """Modules, and names that are modules of this package, that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def package_of(module: str) -> str | None:
    """The package or loose module of ugt_composer that an imported name is in; None for other libraries."""
    parts = module.split(".")
    is_inside = parts[0] == PACKAGE.name and len(parts) > 1
    return parts[1] if is_inside and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists()) else None


def dependencies() -> dict[tuple[str, str], set[str]]:
    """(package, package that it imports from) → the files that do."""
    arrows: dict[tuple[str, str], set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        inner = path.relative_to(PACKAGE)
        source = inner.parts[0].removesuffix(".py")
        for target in {package_of(name) for name in imports_of(path)} - {None, source}:
            if source != "__init__":
                arrows.setdefault((source, str(target)), set()).add(str(inner))
    return arrows


def test_every_package_has_a_tier():
    names = {
        path.name.removesuffix(".py")
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert names - {"__init__"} == set(chain(*TIERS))


def test_imports_run_one_way():
    tier = {name: number for number, names in enumerate(TIERS) for name in names}
    upward = {arrow: files for arrow, files in dependencies().items() if tier[arrow[1]] > tier[arrow[0]]}
    assert not upward


def test_no_two_packages_import_each_other():
    arrows = dependencies()
    assert {arrow: files for arrow, files in arrows.items() if arrow[::-1] in arrows} == {}


@pytest.mark.parametrize("package", WITHOUT)
def test_a_package_does_without(package):
    for path in (PACKAGE / package).rglob("*.py"):
        for name in imports_of(path):
            for other in WITHOUT[package]:
                assert not f"{name}.".startswith(f"{other}."), f"{path.name} imports {name}"


def test_tests_do_not_import_benchmarks():
    for path in (ROOT / "tests").rglob("*.py"):
        assert not any(name.split(".")[0] == "benchmarks" for name in imports_of(path)), path


@pytest.mark.parametrize(
    "module", ["ugt_composer", "ugt_composer.config.load", "ugt_composer.conversion", "ugt_composer.cli.main"]
)
def test_cheap_modules_stay_cheap(module):
    code = f"import sys, {module}; sys.exit(any(name in sys.modules for name in ('torch', 'composer', 'streaming')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_starts_without_what_is_slow_to_import():
    slow = ("numpy", "polars", "omegaconf", "rich", "tqdm", "psutil")
    code = f"import sys, ugt_composer.cli.main; sys.exit(str([name for name in {slow} if name in sys.modules]))"
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.stderr.strip() == "[]"


def test_every_public_name_exists():
    import ugt_composer

    for name in ugt_composer.__all__:
        assert getattr(ugt_composer, name)
