"""Classes named in a YAML as `{name: {argument: value}}`, by a short name or, for a user's own, by import path."""

import inspect
import os
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from types import NoneType
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

from ugt_composer.errors import UserError, nearest

T = TypeVar("T")


class ClassWithArguments(NamedTuple):
    key: str
    kind: type
    arguments: dict[str, Any]

    def make(self) -> Any:
        """Creates an instance. UserError if the class does not accept its arguments."""
        try:
            return self.kind(**self.arguments)
        except Exception as error:  # the class is the user's own
            raise UserError(f"{self.key}: {self.kind.__name__} cannot be created: {described(error)}") from error


def described(error: BaseException) -> str:
    """An error of a user's own code in one line: its kind, its message, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def classes_of(
    section: str, entries: Mapping[str, Any], base: type[T], known: Mapping[str, type[T]]
) -> list[ClassWithArguments]:
    """The classes that a section such as `callbacks` names, except those switched off with `false`.

    Args:
        section: the key of the section, for messages.
        entries: name → arguments; null or true: no arguments.
        base: class that each class has to inherit from.
        known: classes by their short names. Any other name is an import path, `package.module.Class`, of an installed
            package or of a module in the working directory.

    Raises:
        UserError: with the key: an unknown name or argument, with the nearest one, or a missing argument.
    """
    classes = []
    for name, arguments in entries.items():
        if arguments is False:
            continue
        key = f"{section}.{name}"
        kind = known[name] if name in known else _imported(key, name, base, known)
        arguments = {} if arguments is None or arguments is True else arguments
        if not isinstance(arguments, Mapping):
            raise UserError(f"{key} is {arguments!r}; expected arguments such as {{argument: value}}, true or false")
        _check_arguments(key, kind, base, arguments)
        classes.append(ClassWithArguments(key, kind, dict(arguments)))
    return classes


def _imported(key: str, path: str, base: type, known: Mapping[str, type]) -> type:
    module_name, _, class_name = path.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in path.split(".")):
        hint = nearest(path, list(known)) if known else "expected an import path such as my_package.my_module.MyClass"
        section = key.removesuffix(f".{path}")
        raise UserError(f"{key} is unknown; {hint} (in an override: {section}[my_package.my_module.MyClass]={{}})")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a script's own folder is in it, but not always the working directory
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:  # the module is the user's own
        raise UserError(f"{key}: {module_name} cannot be imported from {os.getcwd()}: {described(error)}") from error
    kind = vars(module).get(class_name)
    if not isinstance(kind, type) or not issubclass(kind, base):
        classes = {name: value for name, value in vars(module).items() if isinstance(value, type)}
        subclasses = [name for name, value in classes.items() if issubclass(value, base) and value is not base]
        problem = f"is not a {base.__name__}" if isinstance(kind, type) else "does not exist"
        raise UserError(f"{key}: {class_name} {problem} in {module_name}; {nearest(class_name, subclasses)}")
    return kind


def _check_arguments(key: str, kind: type, base: type, arguments: Mapping[str, Any]) -> None:
    # A base class may accept any arguments and ignore them.
    parameters = [] if kind.__init__ is base.__init__ else list(inspect.signature(kind).parameters.values())  # type: ignore[misc]
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        names = [parameter.name for parameter in parameters]
        for name in arguments:
            if name not in names:
                hint = nearest(name, names) if names else f"{kind.__name__} takes no arguments"
                raise UserError(f"{key}.{name} is unknown; {hint}")
    for parameter in parameters:
        is_variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not is_variable and parameter.name not in arguments:
            raise UserError(f"{key}.{parameter.name} is missing; {kind.__name__} has no default for it")
    _check_types(key, kind, arguments)


def _check_types(key: str, kind: type, arguments: Mapping[str, Any]) -> None:
    """UserError for a number where the class declares text, which YAML has changed (1e5 → 100000.0), or the reverse."""
    try:
        hints = get_type_hints(kind.__init__)  # type: ignore[misc]
    except (NameError, TypeError):
        return  # a name that exists for type checkers only
    for name, value in arguments.items():
        declared = {*(get_args(hints.get(name)) or (hints.get(name),))} - {NoneType}
        if declared == {str} and not isinstance(value, str | None):
            raise UserError(
                f"{key}.{name} is {value!r} to YAML, but {kind.__name__} expects text; put what you mean in quotes"
            )
        if declared and declared <= {int, float} and isinstance(value, str):
            raise UserError(f"{key}.{name} is {value!r}; {kind.__name__} expects a number")
