"""Checks the user's keys of DeepSpeed's configuration: unknown ones, which DeepSpeed would ignore, and wrong types.

The valid keys are DeepSpeed's own. Half of its sections are pydantic models, which refuse unknown keys. The others are
read key by key with defaults: they are given a dict that records which keys are read.
"""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

import torch
from pydantic import BaseModel, ValidationError

from ugt_composer.errors import UserError, first_line, nearest
from ugt_composer.parallelism.deepspeed_config import PREFIX
from ugt_composer.parallelism.deepspeed_patches import import_deepspeed, quiet

ELSEWHERE = ("data_parallel_size", "sequence_parallel_size")  # read by deepspeed.initialize
NUMBER = (int, float)
EXAMPLES = {"steps_per_print": 10}  # of values whose default is None


def check_user_keys(settings: Mapping[str, Any], user: Mapping[str, Any]) -> None:
    """Checks the user's keys one section after the other, so that a message can name the section.

    Args:
        settings: the engine's configuration, the user's keys merged into ours.
        user: `parallelism.deepspeed.config`.

    Raises:
        UserError: a key is unknown, with the nearest one, or DeepSpeed refuses its value.
    """
    ours = {key: value for key, value in settings.items() if key not in user or key == "zero_optimization"}
    for key in user:
        tree = {**ours, key: settings.get(key)}
        read, error = _read(tree)
        for problem in _unknown_dtypes(user.get("data_types")):
            raise UserError(problem)
        if isinstance(error, ValidationError):
            raise _refused_by_model(key, error, tree[key])
        for problem in _wrong_types(read, user):
            raise UserError(problem)
        if isinstance(error, AttributeError | TypeError) and not isinstance(user[key], Mapping):
            raise UserError(f"{PREFIX}.{key} is {user[key]!r}; DeepSpeed expects keys and values")
        if error is not None:
            reason = first_line(error).split(" See https://")[0].split(". See ")[0]
            raise UserError(f"{PREFIX}.{key}: DeepSpeed refuses the configuration: {reason}")
        switched_on, failure = _read({**tree, key: _switched_on(tree[key])})
        for path, known, is_off in _unknown_keys(read, switched_on, {key: user[key]}):
            if failure is None or not is_off:
                section, _, name = path.rpartition(".")
                raise UserError(f"{section}.{name} is unknown to DeepSpeed; {nearest(name, known)}")


def _read(tree: Mapping[str, Any]) -> tuple["_RecordedSection", Exception | None]:
    """What DeepSpeed reads of a configuration, and the error with which it refuses it."""
    import_deepspeed(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    from deepspeed.runtime.config import DeepSpeedConfig

    class WithoutBatches(DeepSpeedConfig):
        def _initialize_params(self, param_dict: Any) -> None:
            param_dict.defaults.clear()  # of keys that were removed from DeepSpeed, which it looks for to refuse them
            super()._initialize_params(param_dict)

        def _batch_assertion(self) -> None:
            """The number of ranks is not known in a dry run."""

    section = _RecordedSection(tree)
    try:
        with quiet():
            WithoutBatches(section)
    except Exception as error:  # a dozen kinds, some of them by accident
        return section, error
    return section, None


def _switched_on(tree: Any) -> Any:
    """A copy in which each section is enabled: some that are not are read no further."""
    if not isinstance(tree, dict):
        return tree
    return {key: True if key == "enabled" else _switched_on(value) for key, value in tree.items()}


class _RecordedSection(dict):
    """A section that records what is read from it.

    Attributes:
        defaults: the keys that were read, and their defaults; None if they have none.
        is_iterated: whether all keys were read without being named, such as by a pydantic model.
    """

    def __init__(self, section: Mapping[str, Any]):
        inner = ((key, _RecordedSection(one) if isinstance(one, dict) else one) for key, one in section.items())
        super().__init__(inner)
        self.defaults: dict[str, Any] = {}
        self.is_iterated = False

    def get(self, key: str, default: Any = None) -> Any:
        if self.defaults.get(key) is None:
            self.defaults[key] = default
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.defaults.setdefault(key, None)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.defaults.setdefault(str(key), None)
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self.is_iterated = True
        return super().__iter__()

    def keys(self) -> Any:
        return _Keys(self)

    def items(self) -> Any:
        self.is_iterated = True
        return super().items()

    def __copy__(self) -> "_RecordedSection":
        return self

    def section(self, key: str) -> "_RecordedSection | None":
        """An inner section, without recording."""
        value = super().get(key)
        return value if isinstance(value, _RecordedSection) else None


class _Keys:
    """The keys of a recorded section: `in` names one of them, an iteration none."""

    def __init__(self, section: _RecordedSection):
        self.section = section

    def __contains__(self, key: str) -> bool:
        return key in self.section

    def __iter__(self) -> Iterator[str]:
        return iter(self.section)


def _unknown_keys(
    read: _RecordedSection, switched_on: _RecordedSection, user: Mapping[str, Any], path: str = PREFIX
) -> Iterator[tuple[str, list[str], bool]]:
    """The user's keys that are not read: (key, what is read of its section, whether the section is switched off).

    A section that is iterated checks itself, except `pipeline`.
    """
    known = [*(read.defaults | switched_on.defaults), *(ELSEWHERE if path == PREFIX else ())]
    if path == f"{PREFIX}.pipeline":
        from deepspeed.runtime.config import get_pipeline_config

        known = list(get_pipeline_config({}))
    elif path != PREFIX and (read.is_iterated or switched_on.is_iterated or not known):
        return
    for key, value in user.items():
        inner, inner_on = read.section(key), switched_on.section(key)
        if key not in known:
            yield f"{path}.{key}", [str(one) for one in known], "enabled" in known and user.get("enabled") is not True
        elif inner is not None and inner_on is not None and isinstance(value, Mapping):
            yield from _unknown_keys(inner, inner_on, value, f"{path}.{key}")


def _wrong_types(read: _RecordedSection, user: Mapping[str, Any], path: str = PREFIX) -> Iterator[str]:
    """A message for each of the user's values whose type differs from that of DeepSpeed's default."""
    for key, value in user.items():
        default, inner = read.defaults.get(key), read.section(key)
        default = EXAMPLES.get(key) if default is None else default
        if isinstance(value, Mapping) and inner is not None:
            yield from _wrong_types(inner, value, f"{path}.{key}")
        elif isinstance(default, bool) and value not in (True, False, "auto"):
            yield f"{path}.{key} is {value!r}; DeepSpeed expects true or false"
        elif type(default) in NUMBER and value != "auto" and not _is_number(value, type(default)):
            expected = "a whole number" if type(default) is int else "a number"
            yield f"{path}.{key} is {value!r}; DeepSpeed expects {expected}"
        elif isinstance(default, str) and default != "auto" and not isinstance(value, str):
            yield f"{path}.{key} is {value!r}; DeepSpeed expects text such as {default}"
        elif isinstance(default, dict) and not isinstance(value, Mapping):
            yield f"{path}.{key} is {value!r}; DeepSpeed expects keys and values"


def _unknown_dtypes(data_types: Any) -> Iterator[str]:
    """DeepSpeed looks at these when it first uses them."""
    from deepspeed.runtime.config import DtypeEnum

    for key, value in data_types.items() if isinstance(data_types, Mapping) else ():
        if str(key).endswith("_dtype") and value not in (None, "auto"):
            try:
                DtypeEnum(value)
            except ValueError:
                yield f"{PREFIX}.data_types.{key} is {value!r}; DeepSpeed expects fp32, bf16 or fp16"


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, NUMBER):
        return False
    return kind is float or float(value).is_integer()


def _refused_by_model(section: str, error: ValidationError, content: Any) -> UserError:
    """The first error of a pydantic model in one sentence."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    path = ".".join([PREFIX, *_place_in({section: content}, place)])
    if first["type"] == "extra_forbidden":
        hint = nearest(place[-1], _field_names(error.title, place[:-1]))
        return UserError(f"{path} is unknown to DeepSpeed; {hint}")
    problem = first["msg"].removeprefix("Value error, ")
    value = f" is {first['input']!r}" if not isinstance(first["input"], dict) else ""
    return UserError(f"{path}{value}; DeepSpeed refuses it: {problem[:1].lower()}{problem[1:]}")


def _place_in(tree: Any, place: list[str]) -> list[str]:
    """The path of a key from the root, given its last parts."""
    if not isinstance(tree, dict):
        return place
    if not place or place[0] in tree:
        return place
    return next(([key, *_place_in(tree[key], place)] for key in tree if isinstance(tree[key], dict)), place)


def _field_names(model_name: str, place: list[str]) -> list[str]:
    """The keys of a model of DeepSpeed, or of a model within it."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    model = next(one for one in _subclasses(DeepSpeedConfigModel) if one.__name__ == model_name)
    for part in place:
        field = model.model_fields.get(part)
        inner = () if field is None else (field.annotation, *get_args(field.annotation))
        models = [one for one in inner if isinstance(one, type) and issubclass(one, BaseModel)]
        if not models:
            break
        model = models[0]
    return list(model.model_fields)


def _subclasses(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for one in model.__subclasses__():
        yield one
        yield from _subclasses(one)
