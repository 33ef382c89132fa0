"""Reading the configuration: defaults, then YAML files, then `key=value` overrides, and messages about mistakes.

A later source overrides an earlier one. An unknown key is an error that names the nearest valid one. The result is
immutable.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ugt_composer import __version__
from ugt_composer.config.schema import Config
from ugt_composer.config.strategies import OTHER_NAMES
from ugt_composer.errors import UserError, nearest

WRITTEN_BY = "# ugt_composer "  # first line of a saved config, followed by the version


def load_config(*paths: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Merges YAML files and `key=value` overrides into the defaults; later ones override earlier ones.

    Raises:
        UserError: names the file or override, the key, its value and what was expected.
    """
    merged = OmegaConf.structured(Config)
    for source, tree in (*map(_read_yaml, paths), *map(_read_override, overrides)):
        for problem in (*_misplaced_keys(tree, Config), *_unknown_strategy(tree)):
            raise UserError(f"{source}: {problem}")
        try:
            merged = OmegaConf.unsafe_merge(merged, OmegaConf.create(tree))  # into `merged`, which is not copied
        except OmegaConfBaseException as error:
            raise UserError(f"{source}: {_first_line(error)}") from None
    try:
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError) as error:
        problem = _first_line(error) if isinstance(error, OmegaConfBaseException) else str(error)
        raise UserError(f"{_source(problem, paths, overrides)}: {problem}") from None
    assert isinstance(config, Config)
    return config


def config_yaml(config: Config) -> str:
    """The resolved config as YAML, below a line with the version. `load_config` reads it back to an equal config."""
    return f"{WRITTEN_BY}{__version__}\n{OmegaConf.to_yaml(OmegaConf.structured(config))}"


def version_in(path: Path) -> str | None:
    """The version of this package that wrote a config; None if the file does not have it."""
    with path.open(encoding="utf-8") as file:
        first = file.readline().rstrip()
    return first.removeprefix(WRITTEN_BY) if first.startswith(WRITTEN_BY) else None


def _source(problem: str, paths: Sequence[str | Path], overrides: Sequence[str]) -> str:
    """What causes a problem: the override without which there is none, or the files if it is theirs alone."""
    files = " + ".join(map(str, paths)) or "config"
    if not overrides:
        return files
    try:
        load_config(*paths, overrides=overrides[:-1])
    except UserError as error:
        if str(error).endswith(f": {problem}"):  # the last override does not matter
            return str(error).removesuffix(f": {problem}")
        return " + ".join((files, *overrides))
    return f"override {overrides[-1]}"


def _read_yaml(path: str | Path) -> tuple[str, dict]:
    try:
        tree = OmegaConf.load(path)
        if not OmegaConf.is_dict(tree):
            raise UserError(f"{path}: found a list; expected keys and values")
        return str(path), OmegaConf.to_container(tree)  # type: ignore[return-value]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a YAML file such as yamls/stage1.yaml") from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({error})") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from None


def _read_override(text: str) -> tuple[str, dict]:
    key, separator, _ = text.partition("=")
    if not separator or not re.fullmatch(r"[\w.\[\]]+", key):
        raise UserError(f"{text}: expected key=value such as optimizer.lr=1e-4")
    try:
        return f"override {text}", OmegaConf.to_container(OmegaConf.from_dotlist([text]))  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"override {text}: {str(error).splitlines()[0]}") from None


def _first_line(error: OmegaConfBaseException) -> str:
    key = f"{error.full_key}: " if error.full_key else ""
    return f"{key}{str(error.msg or error).splitlines()[0]}"


def _unknown_strategy(tree: dict) -> Iterator[str]:
    """Yields a message if the strategy has a name from another library, with our key for it."""
    section = tree.get("parallelism")
    strategy = section.get("strategy") if isinstance(section, dict) else None
    if strategy in OTHER_NAMES:
        yield f"parallelism.strategy is {strategy}; {OTHER_NAMES[strategy]}"


def _misplaced_keys(tree: dict, schema: type, prefix: str = "") -> Iterator[str]:
    """Yields a message for each entry of a plain tree that does not fit the dataclass `schema`."""
    hints = get_type_hints(schema)
    names = [f.name for f in fields(schema)]
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key not in names:
            yield f"{name} is unknown; {nearest(name, [prefix + n for n in names])}"
            continue
        section = next((t for t in (hints[key], *get_args(hints[key])) if is_dataclass(t)), None)
        if section is None:
            origin = get_origin(hints[key])
            if isinstance(value, str) and "${" in value:
                continue  # an interpolation, which may give either
            if origin is dict and not isinstance(value, dict):
                yield f"{name} is {value!r}; expected keys and values, or {{}}"
            elif origin is tuple and not isinstance(value, list):
                yield f"{name} is {value!r}; expected a list, in brackets"
            continue
        optional = type(None) in get_args(hints[key])
        if get_origin(hints[key]) is list:
            if not isinstance(value, list):
                yield f"{name} is {value!r}; expected a list such as [{{local: mds/train}}]"
                continue
            for index, item in enumerate(value):
                if not isinstance(item, dict):
                    yield f"{name}[{index}] is {item!r}; expected the keys {', '.join(f.name for f in fields(section))}"
                else:
                    yield from _misplaced_keys(item, section, f"{name}[{index}].")  # type: ignore[arg-type]
        elif isinstance(value, dict):
            yield from _misplaced_keys(value, section, f"{name}.")  # type: ignore[arg-type]
        elif not (optional and value is None):
            valid = ", ".join(f"{name}.{f.name}" for f in fields(section))
            yield f"{name} is {value!r}; expected a section with some of {valid}"
