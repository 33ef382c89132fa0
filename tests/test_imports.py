"""Directions of the imports between packages, and modules whose import must stay cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ugt_composer"
FORBIDDEN = {
    "model": ("composer", "streaming", "deepspeed", "ugt_composer.losses", "ugt_composer.training.trainer"),
    "losses": ("composer", "streaming", "deepspeed", "ugt_composer.training.trainer"),
    "generation": ("composer", "streaming", "deepspeed", "ugt_composer.model", "ugt_composer.losses"),
    "metrics": ("composer", "streaming", "deepspeed", "ugt_composer.model", "ugt_composer.training.trainer"),
    "conversion": ("torch", "composer", "deepspeed", "ugt_composer.model"),
    "algorithms": ("ugt_composer.training.trainer",),
    "callbacks": ("ugt_composer.training.trainer",),
}


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_run_one_way(folder):
    files = sorted((PACKAGE / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imports_of(path):
            for other in FORBIDDEN[folder]:
                assert not f"{name}.".startswith(f"{other}."), f"{path.name} imports {name}"


@pytest.mark.parametrize(
    "module", ["ugt_composer", "ugt_composer.config.schema", "ugt_composer.conversion", "ugt_composer.cli.main"]
)
def test_cheap_modules_stay_cheap(module):
    code = f"import sys, {module}; sys.exit(any(name in sys.modules for name in ('torch', 'composer', 'streaming')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_exists():
    import ugt_composer

    for name in ugt_composer.__all__:
        assert getattr(ugt_composer, name)
