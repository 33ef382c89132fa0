"""The programs of the documentation's commands: their arguments are parsed by their own parsers, nothing is run."""

import argparse
import contextlib
import io
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from tests.docs import shell
from tests.docs.pages import ROOT
from ugt_composer.command import parse
from ugt_composer.config.load import load_settings
from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError
from ugt_composer.importing.run_yaml import write_run_yamls
from ugt_composer.rounds.settings import RoundsSettings

# Programs of others, whose arguments are not checked.
_OTHERS = """
    [ [[ apt apt-get aws awk bash case cat cd chmod cp curl cut deactivate diff docker done du echo esac export
    false fi find for function gh git grep gunzip gzip head helm jq kill kubectl less ln ls mc mkdir mlflow mv nl
    nvidia-smi optuna pip pip3 pre-commit pkill ps pwd pytest return rm rsync sacct sbatch scancel scontrol scp
    sed seq set sleep sort source . squeue ssh tail tar tee tensorboard test touch tr true uniq unset unzip uv
    wait wandb watch wc wget which xargs zcat zip zstd
"""
OTHERS = frozenset(_OTHERS.split())
MODULES_OF_OTHERS = {"venv", "pip", "pytest", "http.server", "json.tool", "zipfile"}


class _Parsed(BaseException):
    """Ends a program when it has parsed its arguments."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments


def problems(text: str, files: Mapping[str, Path]) -> Iterator[tuple[int, str]]:
    """What is wrong in a script: lines, from 0, and sentences.

    Args:
        files: YAML files that pages of the documentation show, by their names.
    """
    try:
        commands = list(shell.commands(text))
    except ValueError as error:
        yield 0, str(error)
        return
    for line, words in commands:
        if problem := problem_of(words, files):
            yield line, f"{' '.join(words)}: {problem}"


def problem_of(words: Sequence[str], files: Mapping[str, Path]) -> str | None:
    """What is wrong with a command; None if nothing is."""
    program, arguments = Path(words[0]).name, list(words[1:])
    if program in ("bash", "sh") and "-c" in arguments:
        inner = arguments[arguments.index("-c") + 1]
        return "; ".join(problem for _, problem in problems(inner, files)) or None
    if program in OTHERS:
        return None
    if program in ("srun", "timeout", "mpirun", "spark-submit"):
        return _of_launched(arguments, files)
    if program == "make":
        return _of_make(arguments)
    if program == "ugt":
        return _of_main("ugt_composer.cli.main", program, arguments, files)
    if program in ("composer", "torchrun"):
        return _of_launcher(program, arguments, files)
    if program in ("python", "python3", "python3.11", "python3.12"):
        return _of_python(arguments, files)
    return f"{program} is no program that tests/docs/programs.py knows"


def _of_launched(arguments: Sequence[str], files: Mapping[str, Path]) -> str | None:
    """Of a command that another program starts: it begins at the first program of the project's."""
    for place, word in enumerate(arguments):
        if word.endswith(".py"):
            return _of_python(arguments[place:], files)
        if Path(word).name in ("ugt", "composer", "torchrun", "bash", "sh", "python", "python3"):
            return problem_of(arguments[place:], files)
    return None


def _of_make(arguments: Sequence[str]) -> str | None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    unknown = [word for word in arguments if "=" not in word and word not in targets and word[0] != "-"]
    return f"the Makefile has no target {', '.join(unknown)}" if unknown else None


def _of_launcher(program: str, arguments: Sequence[str], files: Mapping[str, Path]) -> str | None:
    if program == "composer":
        from composer.cli.launcher import _get_parser as parser_of
    else:
        from torch.distributed.run import get_args_parser as parser_of
    parsed, problem = _outcome(lambda: parser_of().parse_args(list(arguments)))
    if parsed is None:
        return problem
    command = [parsed.training_script, *parsed.training_script_args]
    if vars(parsed).get("command_mode") or vars(parsed).get("no_python"):
        return problem_of(command, files)
    is_module = vars(parsed).get("module_mode") or vars(parsed).get("module")
    return _of_python(["-m", *command] if is_module else command, files)


def _of_python(arguments: Sequence[str], files: Mapping[str, Path]) -> str | None:
    if not arguments:
        return None
    first, *rest = arguments
    if first == "-c":
        try:
            compile(rest[0], "-c", "exec")
        except SyntaxError as error:
            return str(error)
        return None
    if first == "-m":
        module, *rest = rest
        if module == "ugt_composer.train":
            return problem_of(["ugt", "train", *rest], files)
        if module in MODULES_OF_OTHERS:
            return None
        path = ROOT / f"{module.replace('.', '/')}.py"
        if not path.exists():
            path = ROOT / module.replace(".", "/") / "__main__.py"
        return _of_file(path, module, rest, files)
    path = ROOT / first
    return _of_file(path, ".".join(Path(first).with_suffix("").parts), rest, files)


def _of_file(path: Path, module: str, arguments: Sequence[str], files: Mapping[str, Path]) -> str | None:
    if not path.exists():
        return f"{path.relative_to(ROOT)} does not exist"
    if path.relative_to(ROOT).parts[0] in ("benchmarks", "tests"):  # not imported here
        source = path.read_text(encoding="utf-8")
        options = (word.partition("=")[0] for word in arguments if word.startswith("--"))
        unknown = [option for option in options if f'"{option}"' not in source]
        return f"{path.relative_to(ROOT)} has no option {', '.join(unknown)}" if unknown else None
    return _of_main(module, path.name, arguments, files)


def _of_main(module: str, name: str, arguments: Sequence[str], files: Mapping[str, Path]) -> str | None:
    """Calls `main` of a module, which ends when it has parsed these arguments, or the parser of a command of ugt."""
    with mock.patch.object(sys, "argv", [name, *arguments]), mock.patch.object(sys, "path", [str(ROOT), *sys.path]):
        found = import_module(module)
        is_command = hasattr(found, "add_arguments")
        parsed, problem = _outcome(lambda: parse(found, name, arguments) if is_command else found.main())
    if parsed is None:
        return problem
    words = vars(parsed).get("yaml")
    if not isinstance(words, list):
        return None
    of_rounds = name == "rounds.py" or arguments[0] == "rounds"
    return _of_settings(RoundsSettings if of_rounds else Config, words, files)


def _outcome(main: Callable[[], Any]) -> tuple[argparse.Namespace | None, str | None]:
    """The first arguments that a program parses, or else what its parser says."""
    plain = argparse.ArgumentParser.parse_args
    intermixed = argparse.ArgumentParser.parse_intermixed_args

    def ends(original: Callable[..., argparse.Namespace]) -> Callable[..., None]:
        def parse_and_end(self: Any, *arguments: Any, **named: Any) -> None:
            raise _Parsed(original(self, *arguments, **named))

        return parse_and_end

    said = io.StringIO()
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", ends(plain)),
        mock.patch.object(argparse.ArgumentParser, "parse_intermixed_args", ends(intermixed)),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(said),
    ):
        try:
            main()
        except _Parsed as parsed:
            return parsed.arguments, None
        except UserError as error:
            return None, str(error)
        except SystemExit as end:
            if end.code in (0, None):  # --help, --version
                return None, None
            return None, said.getvalue().strip().rpartition("error: ")[2]
    return None, "parses no arguments"


def _of_settings(schema: type, words: Sequence[str], files: Mapping[str, Path]) -> str | None:
    paths = [word for word in words if "=" not in word]
    found = [yaml_file(path, files) for path in paths]
    if None in found:
        return (
            f"{paths[found.index(None)]} is neither in the repository nor shown in a page, as a block of yaml with "
            'title="NAME"'
        )
    try:
        load_settings(schema, *(path for path in found if path), overrides=[word for word in words if "=" in word])
    except UserError as error:
        return str(error)
    return None


def yaml_file(name: str, files: Mapping[str, Path]) -> Path | None:
    """The file that has the keys of a YAML that a command names: a saved config has those of its stage."""
    if (ROOT / name).is_file():
        return ROOT / name
    if name in files:
        return files[name]
    if Path(name).name in ("data.yaml", "preferences.yaml"):
        return Path(_written_by_import().name) / Path(name).name
    if stage := re.search(r"stage([123])", name):
        return ROOT / f"yamls/stage{stage[1]}.yaml"
    return ROOT / "yamls/stage1.yaml" if Path(name).name == "config.yaml" else None


@cache
def _written_by_import() -> tempfile.TemporaryDirectory:
    """A folder with the data.yaml and preferences.yaml that an import writes."""
    folder = tempfile.TemporaryDirectory()
    rows = {f"{name}.jsonl": 9 for name in ("train", "validation", "train_preference", "validation_preference")}
    report = {"rows": rows, "codebook_sizes": [32, 128, 1024], "histories": {}}
    out = Path("data/mine")
    write_run_yamls(Path(folder.name), out, out, report, 64)
    return folder
