"""Writes docs/configuration.md: `python docs/configuration_page.py`.

Names, types, defaults, bounds, units and what may change on resume come from the dataclasses of the configuration, the
explanations from the comments in the shipped YAMLs, and those of keys that no YAML lists from the dataclasses'
docstrings. A test compares the committed page with what this script writes.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from os.path import commonprefix
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from ugt_composer.config.keys import BOUNDS, DEFINES_WEIGHTS, ON_RESUME, UNIT, OnResume
from ugt_composer.config.load import load_config, load_settings
from ugt_composer.config.schema import Config
from ugt_composer.rounds.settings import RoundsSettings

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/configuration.md"
STAGES = [ROOT / f"yamls/stage{number}.yaml" for number in (1, 2, 3)]
ROUNDS = ROOT / "yamls/rounds.yaml"
ON_RESUME_IN_WORDS = {
    OnResume.FREE: "may change",
    OnResume.FIXED: "must not change",
    OnResume.ON_REQUEST: "may change if `resume_despite` names it",
    OnResume.ON_REQUEST_UNLESS_ZERO: "may change if `resume_despite` names it, but not from or to 0",
}
BEGINNING = """# Configuration

<!-- Written by docs/configuration_page.py. Change the comments in yamls/ or ugt_composer/config/schema.py instead. -->

All keys of a stage's YAML. A run takes the defaults below, then each YAML file of the command line, then each
`key=value`; a later one overrides an earlier one. An unknown key is an error that names the nearest one. `--dry-run`
prints the result, and each run saves it as `config.yaml` in its `save_folder`.

```bash
python train.py yamls/stage1.yaml optimizer.lr=3e-4 data.eval.local=null --dry-run
```

Durations are text: `500ba` are batches (optimizer steps), `2ep` epochs. **On resume** says whether a key may have a
different value than in the checkpoint: [Preemption and resuming](resuming.md). Values of `optimizer` come from the
checkpoint, unless `resume_despite` names them. What the stages are for: [The three stages](stages.md).
"""
MIDDLE = """
## Keys of `rounds.py`

`yamls/rounds.yaml`, for [rounds of the model's own preferences](stages.md): `python rounds.py yamls/rounds.yaml`.
"""


@dataclass(frozen=True)
class Key:
    """
    Attributes:
        name: such as "optimizer.lr"; "data.train.streams[].local" for one of a list.
        owner: the dataclass with its field.
        on_resume: what the field declares, or else a section above it; None where nothing resumes.
    """

    name: str
    owner: type
    field: Field
    hint: Any
    on_resume: OnResume | None

    @property
    def section(self) -> str:
        return self.name.partition(".")[0] if "." in self.name else ""

    @property
    def default(self) -> Any:
        """MISSING for a key that each YAML has to set."""
        factory = self.field.default_factory
        return self.field.default if factory is MISSING else factory()


def keys_of(schema: type, prefix: str = "", on_resume: OnResume | None = None) -> Iterator[Key]:
    """All keys below a dataclass, also those of the sections in its lists and of sections that may be null."""
    hints = get_type_hints(schema)
    for field in fields(schema):
        hint, name = hints[field.name], prefix + field.name
        own = field.metadata.get(ON_RESUME) or on_resume
        section = next((one for one in (hint, *get_args(hint)) if isinstance(one, type) and is_dataclass(one)), None)
        if section is not hint:
            yield Key(name, schema, field, hint, own)
        if section is not None:
            yield from keys_of(section, f"{name}[]." if get_origin(hint) is list else f"{name}.", own)


def comments(path: Path) -> dict[str, str]:
    """The comment of each key of a YAML: behind its value, and in the lines below that have nothing else."""
    text = path.read_text(encoding="utf-8")
    lines, found = [*text.splitlines(), ""], dict[str, str]()
    for name, number in _lines_of(yaml.compose(text), ""):
        parts = [comment[1]] if (comment := re.search(r"\s# (.*)", lines[number])) else []
        while parts and (more := re.fullmatch(r" {8,}# (.*)", lines[number := number + 1])):
            parts.append(more[1])
        found.setdefault(name, " ".join(parts))
    return found


def _lines_of(node: yaml.Node, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield prefix + key.value, key.start_mark.line
            yield from _lines_of(value, f"{prefix}{key.value}.")


def explanation(key: Key, of_yamls: list[dict[str, str]], names: list[str]) -> str:
    """What a key means, as one or several sentences; "" if nothing says it.

    Args:
        of_yamls: the comments of each YAML.
        names: of these YAMLs, for keys on which their comments differ.
    """
    if described := _attributes(key.owner).get(key.field.name):
        return described
    texts: dict[str, list[str]] = {}
    for name, found in zip(names, of_yamls, strict=True):
        if found.get(key.name):
            texts.setdefault(found[key.name], []).append(name)
    if len(texts) < 2:
        return "".join(texts)
    same = re.match(r"(?:.*[:;] )?", commonprefix(list(texts)))  # noqa: RUF071 - of the letters
    assert same is not None
    if common := same[0]:
        return common + ", ".join(f"{text.removeprefix(common)} ({', '.join(where)})" for text, where in texts.items())
    return "; ".join(f"{' and '.join(where)}: {text}" for text, where in texts.items())


def _attributes(owner: type) -> dict[str, str]:
    """Those that the docstring of a dataclass describes."""
    section = re.search(r"Attributes:\n(.*)", owner.__doc__ or "", re.S)
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12,}.*)*)", section[1], re.M) if section else []
    return {name: " ".join(text.split()) for name, text in entries}


def type_in_words(hint: Any) -> str:
    choices = [one for one in get_args(hint) if one is not NoneType] if NoneType in get_args(hint) else [hint]
    words = [_one_type(one) for choice in choices for one in (get_args(choice) if _is_union(choice) else (choice,))]
    return " or ".join([*words, *(["`null`"] if NoneType in get_args(hint) else [])])


def _is_union(hint: Any) -> bool:
    return get_origin(hint) is not None and type(hint).__name__ == "UnionType"


def _one_type(hint: Any) -> str:
    scalars = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`", Any: "any value"}
    if hint in scalars:
        return scalars[hint]
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) is dict:
        return "keys and values"
    if get_origin(hint) in (tuple, list):
        inner = get_args(hint)
        count = {2: "two ", 3: "three "}.get(len(inner), "") if Ellipsis not in inner else ""
        what = (
            "sections" if is_dataclass(inner[0]) else {int: "whole numbers", float: "numbers", str: "texts"}[inner[0]]
        )
        return f"list of {count}{what}"
    return "section"


def value_in_yaml(value: Any) -> str:
    if is_dataclass(value) and not isinstance(value, type):
        value = {name: inner for name, inner in asdict(value).items() if inner is not None}
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {value_in_yaml(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(value_in_yaml, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def sentence(text: str) -> str:
    """With a capital letter, unless it begins with a name such as config.yaml, and a full stop."""
    begins_with_word = re.match(r"[a-z]+[ ,:;]", text)
    return f"{text[0].upper() if begins_with_word else text[0]}{text[1:]}{'' if text.endswith('.') else '.'}"


def entry(key: Key, text: str, values: dict[str, Any]) -> Iterator[str]:
    """The lines about a key.

    Args:
        text: its explanation.
        values: in each shipped YAML.
    """
    yield from ("", f"### `{key.name}`", "")
    if text:
        yield from (sentence(text), "")
    bounds, unit = key.field.metadata.get(BOUNDS), key.field.metadata.get(UNIT)
    limits = f"; expected {bounds}" if bounds is not None else ""
    yield f"- Type: {type_in_words(key.hint)}{limits}{f'; unit: {unit}' if unit else ''}"
    default = "none" if key.default is MISSING else f"`{value_in_yaml(key.default)}`"
    if not values or all(value == key.default for value in values.values()):
        yield f"- Default: {default}{', in all stages' * (len(values) > 1)}"
    else:
        shown = (f"{name}: `{value_in_yaml(value)}`" for name, value in values.items())
        yield f"- Default: {default}; {', '.join(shown)}"
    if key.on_resume is not None:
        yield f"- On resume: {ON_RESUME_IN_WORDS[key.on_resume]}"
    if key.field.metadata.get(DEFINES_WEIGHTS):
        yield "- Trained weights have another meaning with another value: a model is not loaded with a different one"


def page() -> str:
    """The text of the page."""
    lines = [BEGINNING]
    of_stages, configs = [comments(path) for path in STAGES], [load_config(path) for path in STAGES]
    stages, section = ["stage 1", "stage 2", "stage 3"], None
    for key in sorted(keys_of(Config), key=lambda key: key.section != ""):  # the keys of no section come first
        if key.section != section:
            section = key.section
            lines += ["", f"## `{section}`" if section else "## The run"]
            if about := of_stages[-1].get(section):
                lines += ["", sentence(about)] if section != key.name else []
        values = {} if "[]" in key.name else dict(zip(stages, (_value(one, key) for one in configs), strict=True))
        if MISSING in values.values():
            values = {}
        lines += entry(key, explanation(key, of_stages, stages), values)
    lines.append(MIDDLE.rstrip())
    settings, of_rounds = load_settings(RoundsSettings, ROUNDS), comments(ROUNDS)
    for key in keys_of(RoundsSettings):
        lines += entry(key, explanation(key, [of_rounds], ["rounds"]), {"`yamls/rounds.yaml`": _value(settings, key)})
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _value(settings: Any, key: Key) -> Any:
    """The value of a key; MISSING if it is in a section that is null."""
    for name in key.name.split("."):
        if settings is None:
            return MISSING
        settings = getattr(settings, name)
    return settings


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
