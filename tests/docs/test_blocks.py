"""Code blocks of the documentation: commands, keys and names exist, and text is what its fence says."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import ROOT, Block, blocks, pages
from tests.docs.programs import problems
from ugt_composer.config.load import load_settings
from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError
from ugt_composer.rounds.settings import RoundsSettings

LANGUAGES = {"bash", "text", "yaml", "json", "python", "csv", "toml", "dockerfile", "html"}
STAGES = [ROOT / f"yamls/stage{stage}.yaml" for stage in (1, 2, 3)]


@pytest.fixture(scope="module")
def shown_files(tmp_path_factory) -> dict[str, Path]:
    """YAML files that pages show, by name."""
    folder, files = tmp_path_factory.mktemp("shown"), dict[str, Path]()
    for page in pages():
        for block in blocks(page):
            if block.title and block.language == "yaml":
                files[block.title] = folder / block.title.replace("/", "-")
                files[block.title].write_text(block.text)
    return files


@pytest.mark.parametrize("page", pages())
def test_blocks_of_a_page_are_valid(page, shown_files):
    found = [f"{block.place}: {problem}" for block in blocks(page) for problem in _problems(block, shown_files)]
    assert not found, "\n".join(found)


def _problems(block: Block, shown_files: dict[str, Path]) -> Iterator[str]:
    if included := re.fullmatch(r'--8<-- "(.+)"\n?', block.text):  # the file has its own tests
        if not (ROOT / included[1]).is_file():
            yield f"{included[1]} does not exist"
        return
    if block.language not in LANGUAGES:
        yield f"the fence has language {block.language or 'none'}; expected one of {', '.join(sorted(LANGUAGES))}"
    elif block.language == "bash":
        for line, problem in problems(block.text, shown_files):
            yield f"line {line + 1}: {problem}"
    elif block.language == "yaml":
        yield from _problems_of_yaml(block)
    elif block.language == "json":
        yield from _problems_of_json(block.text)
    elif block.language == "python":
        yield from _problems_of_python(block.text)


def _problems_of_yaml(block: Block) -> Iterator[str]:
    try:
        documents = [one for one in yaml.safe_load_all(block.text) if one is not None]
    except yaml.YAMLError as error:
        yield str(error)
        return
    for document in documents:
        keys = set(document) if isinstance(document, dict) else set()
        if "apiVersion" in keys:  # Kubernetes
            continue
        if keys & (_names(RoundsSettings) - _names(Config)):
            yield from _refused(block, RoundsSettings, [ROOT / "yamls/rounds.yaml"])
        elif keys & _names(Config):
            yield from _refused(block, Config, STAGES)


def _names(schema: type) -> set[str]:
    return {field.name for field in fields(schema)}


def _refused(block: Block, schema: type, bases: list[Path]) -> Iterator[str]:
    """A part of a configuration has to fit one of the shipped YAMLs."""
    errors = []
    for base in bases:
        try:
            load_settings(schema, base, overrides=_overrides(yaml.safe_load(block.text)))
            return
        except UserError as error:
            errors.append(str(error))
    yield errors[0]


def _overrides(document: dict, prefix: str = "") -> list[str]:
    return [f"{prefix}{key}={json.dumps(value, ensure_ascii=False)}" for key, value in document.items()]


def _problems_of_json(text: str) -> Iterator[str]:
    """The text is one value, or JSON Lines."""
    try:
        json.loads(text)
        return
    except ValueError as error:
        problem = str(error)
    try:
        for line in text.splitlines():
            json.loads(line)
    except ValueError:
        yield problem


def _problems_of_python(text: str) -> Iterator[str]:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield str(error)
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ugt_composer":
            module = import_module(str(node.module))
            for name in node.names:
                if not hasattr(module, name.name):
                    yield f"{node.module} has no {name.name}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("composer -n 2 train.py yamls/stage2.yaml loss.lambda_contrastive=0.2 # a comment\n", None),
        ("composer train.py yamls/stage2.yaml loss.lambda_contrastiv=0.2\n", "loss.lambda_contrastiv is unknown"),
        ("composer train.py yamls/stage3.yaml \\\n  --dry-runs\n", "--dry-runs"),
        ("composer train.py movies.yaml\n", "neither in the repository"),
        ("composer train.py yamls/stage1.yaml shown.yaml\n", None),
        ("python convert/jsonl_to_mds.py a.jsonl --kind recommended --out b\n", "recommended"),
        ("python convert/jsonl_to_mds.py a.jsonl --kind recommend --out b && ls b | head -n 2\n", None),
        ("ugt recommend --checkpoint a --history 'b c.json' -k ten\n", "ten"),
        ("ugt inspect a > b.txt 2>&1\nugt inspekt a\n", "inspekt"),
        ("composer -c ugt evaluate --checkpoint a --data b --jsn c\n", "--jsn"),
        ("make demo tests\n", "no target tests"),
        ("python benchmarks/step.py --no-such\n", "has no option --no-such"),
        ("python benchmarks/steps.py\n", "does not exist"),
        ("python rounds.py yamls/rounds.yaml data=[a] validation=[b] round=5\n", "round is unknown"),
        ("ugt train yamls/stage1.yaml data/mine/data.yaml sed=1\n", "sed is unknown"),
        ("ugt train yamls/stage3.yaml data/mine/data.yaml data/mine/preferences.yaml --dry-run\n", None),
        ("composer -m ugt_composer.train yamls/stage1.yaml sed=1\n", "sed is unknown"),
        ("composer -n 2 -c ugt train yamls/stage1.yaml sed=1\n", "sed is unknown"),
        ("ugt rounds yamls/rounds.yaml round=5\n", "round is unknown"),
        ("rm -rf x\nfrobnicate x\n", "frobnicate is no program"),
        ("cat > a.yaml <<E\nseed: 1\nE\n", "here-document"),
        (
            'srun bash -c "exec composer --node_rank \\$SLURM_NODEID train.py yamls/stage2.yaml sed=1"\n',
            "sed is unknown",
        ),
        (
            "N=1 python train.py yamls/stage1.yaml 'data.train.streams=[{local: a}]' \\\n  data.train.local=null\n",
            None,
        ),
    ],
)
def test_a_wrong_command_is_found(text, expected, tmp_path):
    (tmp_path / "shown.yaml").write_text("seed: 1\n")
    found = [problem for _, problem in problems(text, {"shown.yaml": tmp_path / "shown.yaml"})]
    assert (expected is None) == (not found), found
    assert expected is None or expected in found[0]
