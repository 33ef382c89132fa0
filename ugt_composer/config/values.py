"""YAML to the values of a dataclass tree, by the types of its fields: text stays as it was typed.

YAML 1.1 by itself would read `run_name: 007` as 7, `seed: 010` as 8, `on` as true and `12:30` as 750.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ugt_composer.config.strategies import OTHER_NAMES
from ugt_composer.errors import nearest

NULLS = ("", "~", "null", "Null", "NULL")
BOOLS = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}
FLOATS = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}  # as YAML writes them
TAG = "tag:yaml.org,2002:"
_LEADING_ZEROS = re.compile(r"[-+]?0[\d_]*\d")
_NUMBER = re.compile(r"[-+]?\.?\d[\d_.eE+-]*")
_INT = r"[-+]?(?:0[\d_]*|[1-9][\d_]*|0x[\da-fA-F_]+|0b[01_]+)"
_FLOAT = r"[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*(?:[eE][-+]?\d+)?|\.inf)|\.nan"


class ValueProblem(ValueError):
    """A value that does not fit its key, or an unknown key.

    Attributes:
        line: where it stands in its file, from 1; 0 if unknown.
    """

    def __init__(self, message: str, node: yaml.Node):
        super().__init__(message)
        self.line = node.start_mark.line + 1 if node.start_mark is not None else 0


class _Loader(yaml.SafeLoader):
    """Recognises numbers, booleans and null for values whose type only a user's class knows. Dates and times stay text,
    and a number may have an exponent without a dot (1e-4)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag.removeprefix(TAG) not in ("int", "float", "timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{TAG}float", re.compile(f"(?:{_FLOAT})$"), list("-+0123456789."))
_Loader.add_implicit_resolver(f"{TAG}int", re.compile(f"(?:{_INT})$"), list("-+0123456789"))


def compose(text: str) -> yaml.Node | None:
    """The nodes of a YAML document; None if it is empty. YAMLError if it is not valid."""
    return yaml.compose(text, Loader=_Loader)


def plain_text(text: str) -> yaml.ScalarNode:
    """A node of text without quotes, that stands in no file."""
    return yaml.ScalarNode(f"{TAG}str", text)


def convert(node: yaml.Node, hint: Any, schema: type, name: str = "") -> Any:
    """The value of a node for a field of this type.

    Args:
        hint: a dataclass, str, int, float, bool, Literal, tuple, list, dict, Any, or one of these or None.
        schema: the dataclass of the whole tree.
        name: the key, such as "optimizer.lr"; "" for the whole tree.

    Raises:
        ValueProblem: the value does not fit, or a key is unknown.
    """
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [option for option in options if option is not NoneType]
    if isinstance(node, yaml.ScalarNode):
        if "${" in node.value:
            return node.value  # an interpolation, which may give anything
        if node.value == "???":  # to OmegaConf, a value that is still missing
            raise _wrong(node, name, "a value")
        if _is_null(node) and (NoneType in options or Any in kinds):
            return None
    if is_dataclass(kinds[0]):
        return _section(node, kinds[0], schema, name)
    if kinds[0] is Any:
        return _untyped(node, name)
    origin = get_origin(kinds[0])
    if origin is dict:
        if not isinstance(node, yaml.MappingNode):
            raise _wrong(node, name, "keys and values, or {}")
        return {key.value: _untyped(value, f"{name}.{key.value}") for key, value in _pairs(node, name)}
    if origin in (tuple, list):
        return _list(node, kinds[0], schema, name)
    if origin is Literal:
        return _choice(node, [str(choice) for choice in get_args(kinds[0])], name)
    if int in kinds and str in kinds and not (isinstance(node, yaml.ScalarNode) and _NUMBER.fullmatch(node.value)):
        kinds = [str]
    return _SCALARS[kinds[0]](node, name)


def keys_of(schema: Any, prefix: str = "") -> Iterator[str]:
    """All keys below a dataclass, such as "optimizer.lr"."""
    for field in fields(schema):
        if isinstance(field.type, type) and is_dataclass(field.type):
            yield from keys_of(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def _section(node: yaml.Node, section: Any, schema: type, name: str) -> dict[str, Any]:
    hints, prefix = get_type_hints(section), f"{name}." if name else ""
    valid = [field.name for field in fields(section)]
    if not isinstance(node, yaml.MappingNode):
        raise _wrong(node, name, f"a section with some of {', '.join(prefix + key for key in valid)}")
    tree = {}
    for key, value in _pairs(node, name):
        if key.value not in valid:
            raise ValueProblem(_unknown_key(prefix, key.value, valid, schema), key)
        tree[key.value] = convert(value, hints[key.value], schema, prefix + key.value)
    return tree


def _unknown_key(prefix: str, name: str, valid: list[str], schema: Any) -> str:
    """Hints at the keys of other sections with the same last part, or else at the nearest key of the section.

    Args:
        prefix: of the section, such as "optimizer.".
        valid: the section's keys, without it.
    """
    same = [key for key in keys_of(schema) if key.rpartition(".")[2] == name]
    hint = f"did you mean {' or '.join(same)}?" if same else nearest(name, valid, prefix)
    return f"{prefix}{name} is unknown; {hint}"


def _list(node: yaml.Node, hint: Any, schema: type, name: str) -> list[Any]:
    inner = get_args(hint)
    is_of_sections = is_dataclass(inner[0])
    if not isinstance(node, yaml.SequenceNode):
        raise _wrong(node, name, "a list such as [{local: mds/train}]" if is_of_sections else "a list, in brackets")
    fixed = get_origin(hint) is tuple and inner[-1] is not Ellipsis
    if fixed and len(node.value) != len(inner):
        raise _wrong(node, name, f"a list of {len(inner)} numbers")
    return [
        convert(item, inner[place if fixed else 0], schema, f"{name}[{place}]") for place, item in enumerate(node.value)
    ]


def _pairs(node: yaml.MappingNode, name: str) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    """Keys and values, with those of `<<: *anchor`. ValueProblem for a key that is given twice or is not text."""
    for place, (key, _) in enumerate(node.value):
        if not isinstance(key, yaml.ScalarNode):
            raise _wrong(key, f"a key of {name or 'the file'}", "text")
        if any(other.value == key.value for other, _ in node.value[:place]):
            raise ValueProblem(f"{name}{'.' * bool(name)}{key.value} is given twice; expected it once", key)
    _Loader("").flatten_mapping(node)
    return list({key.value: (key, value) for key, value in node.value}.values())


def _untyped(node: yaml.Node, name: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {_untyped(key, name): _untyped(value, f"{name}.{key.value}") for key, value in _pairs(node, name)}
    if isinstance(node, yaml.SequenceNode):
        return [_untyped(item, f"{name}[{place}]") for place, item in enumerate(node.value)]
    if node.tag == f"{TAG}int":
        if _LEADING_ZEROS.fullmatch(node.value):
            raise _leading_zeros(node, name, ", or put it in quotes if it is text")
        return _int(node, name)
    if node.tag == f"{TAG}float":
        return _float(node, name)
    if node.tag == f"{TAG}str" or "${" in node.value:
        return node.value
    try:
        return _Loader("").construct_object(node)
    except yaml.YAMLError as error:
        raise _wrong(node, name, f"a number, text, true, false or null ({getattr(error, 'problem', error)})") from None


def _choice(node: yaml.Node, choices: list[str], name: str) -> str:
    if isinstance(node, yaml.ScalarNode) and node.value in choices:
        return node.value
    shown = _shown(node)
    if isinstance(node, yaml.ScalarNode) and node.value in OTHER_NAMES and name == "parallelism.strategy":
        raise ValueProblem(f"{name} is {shown}; {OTHER_NAMES[node.value]}", node)
    raise ValueProblem(f"{name} is {shown}; {nearest(str(node.value), choices)}", node)


def _text(node: yaml.Node, name: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _wrong(node, name, "text; put it in quotes if it contains brackets or colons")
    if not node.value:
        raise _wrong(node, name, "text")
    return node.value


def _int(node: yaml.Node, name: str) -> int:
    text = _number_text(node, name, "a whole number")
    try:
        return int(text, 0)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        value = 0.5
    raise _wrong(node, name, f"a whole number, such as {value:.0f}" if value.is_integer() else "a whole number")


def _float(node: yaml.Node, name: str) -> float:
    text = _number_text(node, name, "a number")
    try:
        return float(FLOATS.get(text.lower(), text))
    except ValueError:
        pass
    try:
        return float(int(text, 0))
    except ValueError:
        raise _wrong(node, name, "a number") from None


def _number_text(node: yaml.Node, name: str, expected: str) -> str:
    """ValueProblem if it is no scalar, or a number that is octal to some and decimal to others."""
    if not isinstance(node, yaml.ScalarNode):
        raise _wrong(node, name, expected)
    if _LEADING_ZEROS.fullmatch(node.value):
        raise _leading_zeros(node, name)
    return node.value


def _leading_zeros(node: yaml.ScalarNode, name: str, otherwise: str = "") -> ValueProblem:
    sign, digits = "-" * node.value.startswith("-"), re.sub(r"[-+_]", "", node.value).lstrip("0")
    decimal = f"{sign}{digits or '0'}"
    octal = f"{sign}{int(digits, 8)}" if digits and set(digits) <= set("01234567") else decimal
    other = "" if octal == decimal else f", or {octal} if it is octal"
    return ValueProblem(
        f"{name} is {node.value}, which is written with a leading zero; write {decimal}{other}{otherwise}", node
    )


def _bool(node: yaml.Node, name: str) -> bool:
    if isinstance(node, yaml.ScalarNode) and node.value.lower() in BOOLS:
        return BOOLS[node.value.lower()]
    raise _wrong(node, name, "true or false")


_SCALARS: dict[Any, Callable[[yaml.Node, str], Any]] = {str: _text, int: _int, float: _float, bool: _bool}


def _is_null(node: yaml.ScalarNode) -> bool:
    return node.style is None and node.value in NULLS


def _wrong(node: yaml.Node, name: str, expected: str) -> ValueProblem:
    return ValueProblem(f"{name or 'the file'} is {_shown(node)}; expected {expected}", node)


def _shown(node: yaml.Node) -> str:
    """A value as a message shows it, in one line."""
    if isinstance(node, yaml.SequenceNode):
        text = f"[{', '.join(map(_shown, node.value))}]"
    elif isinstance(node, yaml.MappingNode):
        text = f"{{{', '.join(f'{key.value}: {_shown(value)}' for key, value in node.value)}}}"
    elif _is_null(node):
        return "null" if node.value else "empty"
    else:
        text = node.value if _NUMBER.fullmatch(node.value) else repr(node.value)
    return text if len(text) <= 100 else f"{text[:97]}…"
