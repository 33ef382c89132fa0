"""Reading the configuration: defaults, then YAML files, then `key=value` overrides, and messages about mistakes.

A later source overrides an earlier one. An unknown key is an error that names the nearest valid one. The result is
immutable.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ugt_composer import __version__
from ugt_composer.config.schema import Config
from ugt_composer.config.shipped import how_to_get
from ugt_composer.config.values import ValueProblem, compose, convert, plain_text
from ugt_composer.errors import UserError, where_searched

T = TypeVar("T")
_KEY = re.compile(r"[\w-]+(\.[\w-]+|\[[^\[\]=]+\])*")
WRITTEN_BY = "# ugt_composer "  # first line of a saved config, followed by the version


def load_config(*paths: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Merges YAML files and `key=value` overrides into the defaults; later ones override earlier ones.

    Raises:
        UserError: names the file or override, the key, its value and what was expected.
    """
    return load_settings(Config, *paths, overrides=overrides)


def load_settings(schema: type[T], *paths: str | Path, overrides: Sequence[str] = ()) -> T:
    """Like `load_config`, for a dataclass of other keys."""
    merged = _merged(schema, paths, overrides)
    try:
        settings = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError) as error:
        problem = _first_line(error) if isinstance(error, OmegaConfBaseException) else str(error)
        raise UserError(f"{_source(problem, schema, paths, overrides)}: {problem}") from None
    assert isinstance(settings, schema)
    return settings


def _merged(schema: type, paths: Sequence[str | Path], overrides: Sequence[str]) -> DictConfig:
    merged = OmegaConf.structured(schema)
    for source, node in (*map(_read_yaml, paths), *(_read_override(text, schema) for text in overrides)):
        try:
            tree = convert(node, schema, schema)
            merged = OmegaConf.unsafe_merge(merged, OmegaConf.create(tree))  # into `merged`, which is not copied
        except ValueProblem as error:
            line = f":{error.line}" if error.line else ""
            raise UserError(f"{source}{line}: {error}") from None
        except OmegaConfBaseException as error:
            raise UserError(f"{source}: {_first_line(error)}") from None
    return merged


def keys_of_override(text: str, schema: type) -> list[str]:
    """The keys that an override sets: optimizer.lr for `optimizer.lr=1` and for `optimizer={lr: 1}`.

    Raises:
        UserError: it is not key=value.
    """
    return list(_keys_of_node(_read_override(text, schema)[1]))


def type_of_key(key: str, schema: type = Config) -> Any:
    """The type of a key such as optimizer.lr; Any below `callbacks` and other free mappings, None for an unknown key.

    Raises:
        UserError: it is a part of a list.
    """
    return _hint_of(_names_in(key), key, schema)


def config_yaml(config: Config) -> str:
    """The resolved config as YAML, below a line with the version. `load_config` reads it back to an equal config."""
    return f"{WRITTEN_BY}{__version__}\n{OmegaConf.to_yaml(OmegaConf.structured(config))}"


def flat_keys(tree: Any, name: str = "") -> dict[str, Any]:
    """A config's containers as {"model.d_model": 512, …}."""
    if not isinstance(tree, dict):
        return {name.removeprefix("."): tree}
    return {key: leaf for part, inner in tree.items() for key, leaf in flat_keys(inner, f"{name}.{part}").items()}


def version_in(path: Path) -> str | None:
    """The version of this package that wrote a config; None if the file does not have it."""
    with path.open(encoding="utf-8") as file:
        first = file.readline().rstrip()
    return first.removeprefix(WRITTEN_BY) if first.startswith(WRITTEN_BY) else None


def check_saved_config(path: str | Path, config: Config) -> None:
    """Checks that the saved config of a run resumes that run, and does not start another one elsewhere.

    Args:
        path: of a YAML file that `config` was loaded from.

    Raises:
        UserError: `path` is `config.yaml` of a run, whose `save_folder` is another folder from this working directory.
    """
    path = Path(path)
    folder, wanted = Path(os.path.abspath(path)).parent, Path(config.save_folder)
    if folder.name in ("best", "latest"):
        folder = folder.parent
    is_of_run = path.name == "config.yaml" and any((folder / name).exists() for name in (".lock", "metrics.jsonl"))
    if (
        not is_of_run
        or version_in(path) is None
        or folder.resolve() == wanted.resolve()
        or load_config(path).save_folder != config.save_folder
    ):
        return
    away = f"which is {wanted.absolute()} from this working directory, " if not wanted.is_absolute() else ""
    depth = len(wanted.parts)
    started_in = folder.parents[depth - 1] if folder.parts[-depth:] == wanted.parts else None
    way_out = f"run the command in {started_in}, where the run was started, or " if started_in else ""
    raise UserError(
        f"{path}: its save_folder is {wanted}, {away}and not the folder of this file, so that another run would begin "
        f"there; {way_out}add save_folder={folder} to resume this run"
    )


def _source(problem: str, schema: type, paths: Sequence[str | Path], overrides: Sequence[str]) -> str:
    """What causes a problem: the overrides without which there is none, or the files if it is theirs alone."""
    files = " + ".join(map(str, paths)) or "config"
    causes, before = list(overrides), len(overrides) + 1
    while len(causes) < before:  # one may be left out only after another one that it fits
        before = len(causes)
        for number in reversed(range(before)):
            others = causes[:number] + causes[number + 1 :]
            if _problem(schema, paths, others) == problem:
                causes = others
    if len(causes) == 1 and _problem(schema, paths, []) is None:
        return f"override {causes[0]}"
    return " + ".join((files, *causes))


def _problem(schema: type, paths: Sequence[str | Path], overrides: Sequence[str]) -> str | None:
    try:
        OmegaConf.to_object(_merged(schema, paths, overrides))
    except OmegaConfBaseException as error:
        return _first_line(error)
    except (ValueError, UserError) as error:
        return str(error)
    return None


def _read_yaml(path: str | Path) -> tuple[str, yaml.Node]:
    try:
        node = compose(Path(path).read_text("utf-8-sig"))
    except FileNotFoundError:
        way = how_to_get(path) or (
            "expected a YAML file such as yamls/stage1.yaml (`ugt init .` writes it), or key=value, in quotes if it "
            "contains blanks"
        )
        raise UserError(f"{path}: no such file{where_searched(path)}; {way}") from None
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise UserError(f"{path}: is not text in UTF-8 ({byte}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as YAML ({error.strerror})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {_yaml_problem(error)}") from None
    if node is None:
        return str(path), yaml.MappingNode("tag:yaml.org,2002:map", [])
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else "text"
        raise UserError(f"{path}: found {found}; expected keys and values, such as seed: 42")
    return str(path), node


def _read_override(text: str, schema: type) -> tuple[str, yaml.Node]:
    key, separator, value = text.partition("=")
    if not separator or not _KEY.fullmatch(key):
        problem = f"{key!r} is not the name of a key; " if separator else ""
        raise UserError(f"override {text}: {problem}expected key=value such as optimizer.lr=1e-4")
    source, names = f"override {text}", _names_in(key)
    hint = _hint_of(names, source, schema)
    if _is_text(hint) and not value.lstrip().startswith(("'", '"')):
        node: yaml.Node = plain_text(value.strip())  # not YAML, in which some characters have a meaning
    else:
        try:
            node = compose(value) or plain_text("")
        except yaml.YAMLError as error:
            raise UserError(f"{source}: {value} is not valid YAML: {_yaml_problem(error)}") from None
        _forget_lines(node)
    for name in reversed(names):
        node = yaml.MappingNode("tag:yaml.org,2002:map", [(plain_text(name), node)])
    return source, node


def _names_in(key: str) -> list[str]:
    return [part.strip("[]") for part in re.findall(r"[\w-]+|\[[^\[\]=]+\]", key)]


def _keys_of_node(node: yaml.Node, name: str = "") -> Iterator[str]:
    if not isinstance(node, yaml.MappingNode):
        yield name
        return
    for key, value in node.value:
        yield from _keys_of_node(value, f"{name}.{key.value}" if name else str(key.value))


def _hint_of(names: Sequence[str], source: str, schema: type) -> Any:
    """The type of a key; None if there is no such key, which `convert` reports. UserError for a part of a list."""
    hint: Any = schema
    for place, name in enumerate(names):
        kind = next((one for one in (hint, *get_args(hint)) if is_dataclass(one)), None)
        if get_origin(hint) in (list, tuple):
            key = ".".join(names[:place])
            raise UserError(f"{source}: {key} is a list, of which a part cannot be set; write all of it: {key}=[…]")
        if get_origin(hint) is dict:
            return Any
        if kind is None or name not in (field.name for field in fields(kind)):
            return None
        hint = get_type_hints(kind)[name]
    return hint


def _is_text(hint: Any) -> bool:
    return hint is str or get_origin(hint) is Literal or (get_origin(hint) is UnionType and str in get_args(hint))


def _forget_lines(node: yaml.Node) -> None:
    """An override has one line, which needs no number."""
    node.start_mark = None
    for inner in node.value if isinstance(node, yaml.CollectionNode) else ():
        for one in inner if isinstance(inner, tuple) else (inner,):
            _forget_lines(one)


def _yaml_problem(error: yaml.YAMLError) -> str:
    """In one sentence, what the parser found."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error).splitlines()[0]
    if "end" in str(error.problem) and "stream" in str(error.problem):
        return "a bracket or quote is not closed"
    if "\\t" in str(error.problem):
        return "found a tab; indent with blanks"
    return f"{error.problem}; put text that contains special characters in quotes"


def _first_line(error: OmegaConfBaseException) -> str:
    key = f"{error.full_key}: " if error.full_key else ""
    return f"{key}{str(error.msg or error).splitlines()[0]}"
